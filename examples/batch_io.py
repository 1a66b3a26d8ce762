"""Batches: many reads and writes with one call, several calls at once, an error is one I/O's.

What training code does: random samples are read into the rows of an array, without a copy where
the storage node is on this host; a queue reads the next batches while this one is used.

    python examples/batch_io.py [--address HOST:PORT]
"""

import argparse

import numpy as np

import hillfire

MIB = 1 << 20
SAMPLE = 4096
SAMPLES = 4096
BATCH = 256
AHEAD = 3
PATH = "/examples/samples.bin"


def write(fs: hillfire.FileSystem) -> None:
    """Write the data set from an array: each sample's words are its number."""
    region = fs.register(SAMPLES * SAMPLE)
    data = region.numpy("<u4", (SAMPLES, -1))
    data[:] = np.arange(SAMPLES)[:, None]
    with fs.open(PATH, "wb") as file:
        pieces = data.reshape(-1, MIB // 4)
        fs.write_many(file, np.arange(len(pieces)) * MIB, pieces).check()
        file.fsync()  # on the disks of all replicas
    print(f"wrote {len(pieces)} pieces of 1 MiB with one call")


def read_ahead(fs: hillfire.FileSystem) -> None:
    """Read every sample once, in random order, ``AHEAD`` batches ahead of their use."""
    order = np.random.default_rng(0).permutation(SAMPLES).reshape(-1, BATCH)
    region = fs.register(AHEAD * BATCH * SAMPLE)
    slots = region.numpy("<u4", (AHEAD, BATCH, -1))
    batches = iter(order)
    with fs.open(PATH, "rb") as file, fs.queue() as queue:
        for slot in slots:
            samples = next(batches)
            queue.read(file, samples * SAMPLE, into=slot, tag=(samples, slot))
        used = 0
        for transfer in queue:
            used += len(transfer.result().check())
            samples, slot = transfer.tag
            assert (slot == samples[:, None]).all()  # here one would train
            if (following := next(batches, None)) is not None:
                queue.read(file, following * SAMPLE, into=slot, tag=(following, slot))
    assert used == SAMPLES
    print(f"read {used} samples in random order, {AHEAD} batches of {BATCH} ahead")


def odd_ranges(fs: hillfire.FileSystem) -> None:
    """Read past the file's end (a short count) and past the region's (an error)."""
    region = fs.register(4 * SAMPLE)
    with fs.open(PATH, "rb") as file:
        offsets, places = [SAMPLES * SAMPLE - 100, 0], [0, 4 * SAMPLE - 1]
        short, bad = fs.read_many(file, offsets, region, places=places, lengths=SAMPLE)
    assert short == 100
    print(f"at the file's end: a short count, {short} B")
    assert isinstance(bad, hillfire.Error) and bad.code is hillfire.Code.INVALID
    print(f"past the region's end: {bad.code.name}: {bad.strerror}")


def main() -> None:
    """Take the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    with hillfire.connect(parser.parse_args().address) as fs:
        fs.makedirs("/examples", exist_ok=True)
        write(fs)
        read_ahead(fs)
        odd_ranges(fs)


if __name__ == "__main__":
    main()
