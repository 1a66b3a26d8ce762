"""Paths of hillfire by URL, through fsspec: what pandas, PyArrow, DuckDB and torch do inside.

Writes shards, lists them, reads many ranges in one batch, and reads in worker processes, which
are given the file system by pickle.

    python examples/open_by_url.py [--address HOST:PORT] [--shards 8]

Needs fsspec: ``pip install 'hillfire[fsspec]'``.
"""

import argparse
import multiprocessing
import pickle
import random
import time
import warnings

import fsspec

SAMPLE = 4096
SAMPLES = 256


def first_byte(pickled: bytes, path: str, number: int) -> int:
    """Read a sample in a worker process: its file system came as bytes."""
    with pickle.loads(pickled).open(path) as file:
        file.seek(number * SAMPLE)
        return int(file.read(SAMPLE)[0])


def main() -> None:
    """Write, list, read, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    parser.add_argument("--shards", type=int, default=8)
    options = parser.parse_args()
    # Python 3.12 and newer warn of forks beside threads; hillfire's one thread allows for it.
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    top = f"hillfire://{options.address or ''}/examples/shards"
    for shard in range(options.shards):
        with fsspec.open(f"{top}/{shard:03}.bin", "wb") as file:  # directories are made
            for number in range(SAMPLES):
                file.write(bytes([(shard + number) % 256]) * SAMPLE)

    fs, path = fsspec.url_to_fs(top)
    found = fs.glob(f"{path}/*.bin", detail=True)
    total = sum(info["size"] for info in found.values())
    print(f"{len(found)} shards, {total >> 20} MiB: {fs}")

    wanted = [(random.choice(list(found)), random.randrange(SAMPLES)) for _ in range(2000)]
    starts = [number * SAMPLE for _, number in wanted]
    began = time.perf_counter()
    samples = fs.cat_ranges([name for name, _ in wanted], starts, [s + SAMPLE for s in starts])
    elapsed_s = time.perf_counter() - began
    for (name, number), sample in zip(wanted, samples, strict=True):
        assert sample == bytes([(int(name[-7:-4]) + number) % 256]) * SAMPLE
    print(f"{len(samples) / elapsed_s:,.0f} samples/s in one call, all right")

    calls = [(pickle.dumps(fs), name, number) for name, number in wanted[:8]]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        read = pool.starmap(first_byte, calls)
    assert read == [samples[number][0] for number in range(8)]
    print("read by worker processes: all right")
    fs.rm(path, recursive=True)


if __name__ == "__main__":
    main()
