"""The simulator itself: it runs production's own code, and a seed is the same world each time.

Budget: 15 s.
"""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from hillfire.client import core, plan, reading, retry, writing
from hillfire.meta.manager import chains, decide, lease
from hillfire.meta.manager import core as manager
from hillfire.proto import lease as node_lease
from hillfire.storage import comparison, cuts, lifecycle, recovery
from hillfire.storage.craq import (
    admission,
    channels,
    healing,
    locking,
    passing,
    repair,
    replica,
    table,
)  # fmt: skip
from hillfire.storage.store import engine, memory
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
MODULES = (
    core, plan, reading, retry, writing, chains, decide, lease, manager, node_lease, comparison,
    cuts, lifecycle, recovery, admission, channels, healing, locking, passing, repair, replica,
    table, memory, engine,
)  # fmt: skip


def _functions(module: ModuleType) -> dict[str, FunctionType]:
    """Return every function of a module and of its classes, by its qualified name."""
    found = {}
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            found[name] = value
        if inspect.isclass(value) and value.__module__ == module.__name__:
            for each in vars(value).values():
                function = each.fget if isinstance(each, property) else each
                if inspect.isfunction(function):
                    found[f"{name}.{function.__name__}"] = function
    return found


def test_worlds_run_production_code_unpatched() -> None:
    before = {m.__name__: _functions(m) for m in MODULES}
    world = World(1)
    world.live()
    home = next(home for node in world.storage() for home in node.homes.values())
    assert type(home.replica) is replica.Replica and type(home.life) is lifecycle.Lifecycle
    assert type(world.managers[0]._machine) is manager.Manager
    assert type(world.storage()[0].lease) is node_lease.Lease
    assert type(world.clients[0].core) is core.Core
    for module in MODULES:
        assert module.__file__ is not None and ROOT in Path(module.__file__).resolve().parents
        assert "tests" not in Path(module.__file__).resolve().relative_to(ROOT).parts
        assert _functions(module) == before[module.__name__]
        for name, function in _functions(module).items():
            where = Path(function.__code__.co_filename).resolve()
            own = where == Path(module.__file__).resolve()
            made = function.__code__.co_filename.startswith("<")  # by dataclasses
            assert own or made or ROOT not in where.parents, name  # typing's are elsewhere


@pytest.mark.parametrize("seed", [1, 17])
def test_a_seed_is_the_same_world_in_every_process(seed: int) -> None:
    told = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--verbose"],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True,
            text=True, timeout=100,
        )  # fmt: skip
        digests = [line for line in done.stdout.splitlines() if line.startswith("digest ")]
        assert len(digests) == 1, done.stdout[-2000:] + done.stderr
        told.append((digests[0], len(done.stdout)))
    assert told[0] == told[1]
