"""Random programs on the mount and on a local directory, side by side. Budget: 40 s.

``HILLFIRE_PROGRAMS=N`` runs more of them, ``HILLFIRE_SEED=S`` begins elsewhere.
"""

import os
import shutil
import time
from pathlib import Path

from tests.posix.programs import Machine, program

PROGRAMS = int(os.environ.get("HILLFIRE_PROGRAMS", "400"))
FIRST_SEED = int(os.environ.get("HILLFIRE_SEED", "1"))
CALLS = 80
BUDGET_S = float(os.environ.get("HILLFIRE_BUDGET_S", "35"))


def test_the_mount_answers_as_a_local_directory(here: Path, tmp_path: Path, capsys: object) -> None:
    end, done, calls = time.monotonic() + BUDGET_S, 0, 0
    for seed in range(FIRST_SEED, FIRST_SEED + PROGRAMS):
        if time.monotonic() > end and "HILLFIRE_PROGRAMS" not in os.environ:
            break
        steps = program(seed, CALLS)
        roots = here / str(seed), tmp_path / str(seed)
        seen = []
        for root in roots:
            root.mkdir()
            seen.append(Machine(root).run(steps))
        for number, (ours, theirs) in enumerate(zip(*seen, strict=True)):
            call = steps[number] if number < len(steps) else "tree"
            before = "\n".join(map(str, steps[:number]))
            assert ours == theirs, (
                f"seed {seed} call {number}: {call}\n"
                f"mount {_short(ours)}\nlocal {_short(theirs)}\nafter\n{before}"
            )
        done, calls = done + 1, calls + len(steps)
        for root in roots:
            shutil.rmtree(root)
    print(f"programs={done} calls={calls}")
    assert done >= min(20, PROGRAMS)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 600 else f"{text[:600]}… ({len(text)} characters)"
