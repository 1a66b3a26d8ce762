"""``python -m tests.history FILE...``: judge kept histories again."""

import argparse
import sys
import time

from tests.history import check_versions, judge, load
from tests.history.search import DEFAULT_STEPS


def main() -> int:
    """Judge each file; the exit status tells whether all are linearizable."""
    parser = argparse.ArgumentParser(prog="python -m tests.history", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a history as JSON lines (.gz)")
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_STEPS, help="bound of a chunk's search"
    )
    parser.add_argument(
        "--no-versions", action="store_true", help="do not try the order that versions suggest"
    )
    arguments = parser.parse_args()
    good = True
    for name in arguments.files:
        began = time.monotonic()
        operations = load(name)
        verdict = judge(operations, limit=arguments.steps, versions=not arguments.no_versions)
        print(f"{name}: {verdict}")
        for line in check_versions(operations):
            good = False
            print(f"versions: {line}")
        print(
            f"  {verdict.by_versions} chunks by their versions, {verdict.steps} steps for the "
            f"others, {time.monotonic() - began:.2f} s"
        )
        good = good and verdict.ok
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
