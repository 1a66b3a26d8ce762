"""Many reads and writes with one call, from and to registered memory; an error is one entry's.

A batch never fails as a whole: each entry answers a byte count or a ``hillfire.Error``. Here one
entry reaches past the file's end (a short count), another past the region's (an error).

    python examples/batch_io.py [--address HOST:PORT]
"""

import argparse

import hillfire

BLOCK = 64 * 1024
BLOCKS = 64


def main() -> None:
    """Write blocks in one batch, read them back in another order, with two odd entries."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    options = parser.parse_args()
    with hillfire.connect(options.address) as fs:
        fs.makedirs("/examples", exist_ok=True)
        region = fs.register(BLOCKS * BLOCK)
        for i in range(BLOCKS):
            region.view[i * BLOCK : (i + 1) * BLOCK] = bytes([i]) * BLOCK

        with fs.open("/examples/blocks.bin", "w+b") as file:
            writes = [(file, i * BLOCK, i * BLOCK, BLOCK) for i in range(BLOCKS)]
            for i, result in enumerate(fs.write_batch(writes, region)):
                if isinstance(result, hillfire.Error):
                    raise SystemExit(f"block {i} was not written: {result}")
            file.fsync()  # on the disks of all replicas
            print(f"wrote {BLOCKS} blocks of {BLOCK} B with one call")

            backwards = [
                (file, (BLOCKS - 1 - i) * BLOCK, i * BLOCK, BLOCK) for i in range(BLOCKS - 2)
            ]
            past_the_end = (file, BLOCKS * BLOCK - 100, (BLOCKS - 2) * BLOCK, BLOCK)
            past_the_region = (file, 0, BLOCKS * BLOCK - 1, BLOCK)
            *good, short, bad = fs.read_batch([*backwards, past_the_end, past_the_region], region)

        assert good == [BLOCK] * (BLOCKS - 2)
        assert all(region.view[i * BLOCK] == BLOCKS - 1 - i for i in range(BLOCKS - 2))
        print(f"read {len(good)} blocks back in reverse order: as written")
        assert short == 100
        print(f"at the file's end: a short count, {short} B")
        assert isinstance(bad, hillfire.Error) and bad.code is hillfire.Code.INVALID
        print(f"past the region's end: {bad.code.name}: {bad.strerror}")


if __name__ == "__main__":
    main()
