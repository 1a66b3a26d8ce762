"""Save a checkpoint so that a crash leaves the old one or the new one, never half of one.

The arrays go into a file beside the final name; ``fsync`` puts it on the disks of all replicas;
a rename then replaces the old checkpoint in one step. What is restored is compared.

    python examples/checkpoint.py [--address HOST:PORT] [--mib 64]   through the library
    python examples/checkpoint.py --mount DIR                        through a mount, plain Python

Needs NumPy: ``pip install numpy``. With torch installed, tensors are saved as well.
"""

import argparse
import importlib
import os
import posixpath
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import hillfire

MOUNTED = types.SimpleNamespace(open=open, makedirs=os.makedirs, replace=os.replace)
"""A mounted directory is used with what Python has."""


def save(fs: Any, path: str, dump: Callable[[Any], object]) -> None:
    """Write ``path`` as a whole: ``dump`` is given a file to write to."""
    beside = f"{path}.new"
    with fs.open(beside, "wb") as file:
        dump(file)
        file.flush()
        file.fsync() if hasattr(file, "fsync") else os.fsync(file.fileno())
    fs.replace(beside, path)


def restore(fs: Any, path: str) -> dict[str, Any]:
    """Read all arrays of a checkpoint."""
    with fs.open(path, "rb") as file, np.load(file) as arrays:
        return {name: arrays[name] for name in arrays}


def main() -> None:
    """Save two steps under one name, restore the newer one, verify it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", help="of the cluster [default: the one started last]")
    parser.add_argument("--mount", help="go through this mounted directory instead")
    parser.add_argument("--mib", type=int, default=64, help="size of a checkpoint")
    options = parser.parse_args()
    fs: Any = MOUNTED if options.mount else hillfire.connect(options.address)
    directory = posixpath.join(options.mount or "/", "examples", "checkpoints")
    path = posixpath.join(directory, "model.npz")
    fs.makedirs(directory, exist_ok=True)
    for step in (1, 2):
        source = np.random.default_rng(step)
        state = {f"w{i}": source.random(options.mib << 16, dtype=np.float32) for i in range(4)}
        began = time.perf_counter()
        save(fs, path, partial(np.savez, **state))
        print(f"step {step}: {options.mib / (time.perf_counter() - began):.0f} MiB/s, on the disks")
    found = restore(fs, path)
    assert all(np.array_equal(found[name], state[name]) for name in state), "not what was saved"
    print(f"restored {len(found)} arrays: equal to what was saved")
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    save(fs, f"{directory}/model.pt", partial(torch.save, tensors))
    with fs.open(f"{directory}/model.pt", "rb") as file:
        again = torch.load(file, weights_only=True)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    print(f"restored {len(again)} tensors: equal to what was saved")


if __name__ == "__main__":
    main()
