"""Random samples of a data set, read in batches into registered memory by four forked workers.

What a training job's data loader does: the parent opens the file and forks; each worker registers
a region of its own, which the storage nodes on this host fill directly, and reads many samples
with one call. Every sample's first bytes are its number and are checked.

    python examples/data_loader.py [--address HOST:PORT] [--workers 4] [--batches 50]
"""

import argparse
import multiprocessing
import random
import struct
import time
import warnings
from typing import Any

import numpy as np

import hillfire

SAMPLE = 4096
SAMPLES = 16_384
BATCH = 256
PATH = "/examples/dataset.bin"


def prepare(fs: Any) -> None:
    """Write the data set unless it is there: each sample begins with its number."""
    fs.makedirs("/examples", exist_ok=True)
    if fs.exists(PATH) and fs.stat(PATH).st_size == SAMPLE * SAMPLES:
        return
    rest = random.Random(0).randbytes(SAMPLE - 8)
    with fs.open(PATH, "wb") as file:
        for number in range(SAMPLES):
            file.write(struct.pack("<Q", number) + rest)


def work(fs: Any, file: Any, rank: int, batches: int) -> None:
    """Read random samples; the worker of ``rank`` has its own random order."""
    region = fs.register(BATCH * SAMPLE)  # after the fork: memory of this worker alone
    samples = region.numpy("<u8", (BATCH, -1))
    order = np.random.default_rng(rank)
    for _ in range(batches):
        wanted = order.integers(SAMPLES, size=BATCH)
        fs.read_many(file, wanted * SAMPLE, into=samples).check()
        assert (samples[:, 0] == wanted).all()


def main() -> None:
    """Prepare, fork, time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=50, help=f"of {BATCH} samples, each worker")
    options = parser.parse_args()
    # Python 3.12 and newer warn of forks beside threads; hillfire's one thread allows for it.
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    with hillfire.connect(options.address) as fs:
        prepare(fs)
        fork = multiprocessing.get_context("fork")
        with fs.open(PATH, "rb") as file:
            arguments = [(fs, file, rank, options.batches) for rank in range(options.workers)]
            workers = [fork.Process(target=work, args=each) for each in arguments]
            began = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            elapsed_s = time.perf_counter() - began
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed")
    count = options.workers * options.batches * BATCH
    print(f"{count} samples of {SAMPLE} B by {options.workers} workers, all right")
    print(f"{count / elapsed_s:,.0f} samples/s")


if __name__ == "__main__":
    main()
