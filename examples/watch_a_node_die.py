"""Write while a storage node is killed with SIGKILL: the writes go on, nothing is lost.

For a local cluster of three or more nodes, started by ``hillfire up``. The node is started again
at the end, and this waits until it has all replicas again.

    python examples/watch_a_node_die.py [--dir DIR --address HOST:PORT] [--node storage-102]
"""

import argparse
import subprocess
import sys
import threading
import time

import hillfire

MIB = 1 << 20
PATH = "/examples/survivor.bin"


def command(*arguments: str) -> None:
    """Run ``hillfire ARGUMENTS``, as a user would."""
    subprocess.run([sys.executable, "-m", "hillfire.cli", *arguments], check=True)


def main() -> None:
    """Write numbered blocks, kill, go on, read all back, start the node again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", help="of the cluster [default: the one started last]")
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    parser.add_argument("--node", default="storage-102", help="which one dies")
    parser.add_argument("--seconds", type=float, default=4, help="how long to write")
    options = parser.parse_args()
    where = ("--dir", options.dir) if options.dir else ()
    killer = threading.Thread(target=command, args=("node", "kill", options.node, *where))
    blocks, slowest_s, before = 0, 0.0, 0
    with hillfire.connect(options.address) as fs:
        fs.makedirs("/examples", exist_ok=True)
        try:
            with fs.open(PATH, "wb") as file:
                began = time.monotonic()
                while (elapsed_s := time.monotonic() - began) < options.seconds:
                    if elapsed_s > options.seconds / 4 and killer.ident is None:
                        before = blocks
                        killer.start()
                    start = time.monotonic()
                    file.write(blocks.to_bytes(8, "little") * (MIB // 8))
                    file.flush()  # stored by every replica that serves
                    slowest_s = max(slowest_s, time.monotonic() - start)
                    blocks += 1
            killer.join()
            print(f"{blocks} MiB written, {blocks - before} of them after the kill was sent")
            print(f"no error; the slowest MiB took {slowest_s:.2f} s")
            with fs.open(PATH, "rb") as file:
                for number in range(blocks):
                    assert file.read(MIB) == number.to_bytes(8, "little") * (MIB // 8), number
                assert file.read(1) == b""
            print("all read back from the replicas that are left: as written")
        finally:
            if killer.ident is not None:
                killer.join()
                command("node", "start", options.node, *where)
    command("status", *where, "--wait", "60")


if __name__ == "__main__":
    main()
