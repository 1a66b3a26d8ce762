"""The command: seeds on all cores, what they covered, and the story of one."""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.simulation.coverage import Coverage
from tests.simulation.world import World

COMMAND = "python -m tests.simulation --seed"


class Result(NamedTuple):
    """What came of one seed."""

    seed: int
    failure: str
    coverage: Coverage
    virtual_s: float
    cpu_s: float


def run_seed(seed: int) -> Result:
    """Live through a seed, and say what came of it."""
    begun = time.process_time()
    world = World(seed)
    failure = ""
    try:
        world.live()
    except Exception:
        failure = traceback.format_exc(limit=-6)
    spent = time.process_time() - begun
    return Result(seed, failure, world.coverage, world.scheduler.now_s, spent)


def run_seeds(seeds: Sequence[int], jobs: int, seconds: float | None = None) -> Iterator[Result]:
    """Live through seeds on ``jobs`` cores, in no order; for at most ``seconds``."""
    end = None if seconds is None else time.monotonic() + seconds
    if jobs == 1:
        for seed in seeds:
            yield run_seed(seed)
            if end is not None and time.monotonic() > end:
                return
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for result in pool.imap_unordered(run_seed, seeds, chunksize=1):
            yield result
            if end is not None and time.monotonic() > end:
                return


def tell_story(seed: int, verbose: bool) -> int:
    """Replay one seed and print its story."""
    world = World(seed, told=True, verbose=verbose)
    failure = ""
    try:
        world.live()
    except Exception:
        failure = traceback.format_exc(limit=-6)
    print(world.story.text())
    print(f"\nseed {seed}: {world.plan}")
    print(f"digest {world.story.digest()}")
    print(failure or "everything holds")
    return 1 if failure else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command; 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one and tell its story")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="every message and event too")
    parser.add_argument("--json", action="store_true", help="print the sums as JSON")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        return tell_story(given.seed, given.verbose)
    seeds = range(given.first, given.first + given.seeds)
    total, failed, count, cpu_s, virtual_s = Coverage(), list[int](), 0, 0.0, 0.0
    begun = time.monotonic()
    for result in run_seeds(seeds, given.jobs, given.seconds):
        count += 1
        cpu_s += result.cpu_s
        virtual_s += result.virtual_s
        total.add(result.coverage)
        if result.failure:
            failed.append(result.seed)
            print(f"seed {result.seed} FAILS: {COMMAND} {result.seed}\n{result.failure}")
    elapsed = time.monotonic() - begun
    sums = {
        "seeds": count, "failed": sorted(failed), "elapsed_s": round(elapsed, 1),
        "cpu_s_per_seed": round(cpu_s / max(1, count), 3), "virtual_s": round(virtual_s),
        **total.sums(),
    }  # fmt: skip
    if given.json:
        print(json.dumps(sums, indent=1))
    else:
        print(total.table(count, cpu_s, elapsed))
        print(f"failed: {' '.join(map(str, sorted(failed))) or 'none'}")
    return 1 if failed else 0
