"""The asyncio face: the same methods, awaited; any number of tasks share one client.

A hundred tasks write a small file each, all are read back and compared, and a batch reads one
block of each into registered memory.

    python examples/async_io.py [--address HOST:PORT]
"""

import argparse
import asyncio
import time

import hillfire

FILES = 100
BYTES = 32 * 1024
DIRECTORY = "/examples/async"


def content(number: int) -> bytes:
    """Return what file ``number`` holds."""
    return number.to_bytes(2, "little") * (BYTES // 2)


async def run(address: str | None) -> None:
    """Write, read, compare."""
    async with await hillfire.connect_async(address) as fs:
        await fs.makedirs(DIRECTORY, exist_ok=True)
        names = [f"{DIRECTORY}/{number:03}" for number in range(FILES)]
        began = time.perf_counter()
        await asyncio.gather(*(fs.write_bytes(name, content(i)) for i, name in enumerate(names)))
        print(f"{FILES} files written in {time.perf_counter() - began:.2f} s")

        found = await asyncio.gather(*(fs.read_bytes(name) for name in names))
        assert found == [content(number) for number in range(FILES)]
        print(f"{FILES} files read back: as written")

        region = fs.register(FILES * 4096)
        files = await asyncio.gather(*(fs.open(name, "rb") for name in names))
        reads = [(file, 8192, number * 4096, 4096) for number, file in enumerate(files)]
        results = await fs.read_batch(reads, region)
        assert results == [4096] * FILES, results
        assert all(region.view[i * 4096] == i % 256 for i in range(FILES))
        await asyncio.gather(*(file.close() for file in files))
        print("a block of each with one batch: as written")


def main() -> None:
    """Take the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    asyncio.run(run(parser.parse_args().address))


if __name__ == "__main__":
    main()
