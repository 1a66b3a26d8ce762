"""A rank of a training job: ``python ranks.py first|later URL RANK WORLD RENDEZVOUS``.

The first job saves its state in each way and loads it again in each way; a later one, with other
ranks, loads what the first one saved. The state: a matrix sharded by rows over all ranks, one by
columns, a replicated vector, tensors that are not sharded, one of them transposed, one empty, and
plain objects. Whatever the number of ranks, it is the same state.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from hillfire.client.adapters.torch import HillfireReader, HillfireWriter

ROWS, COLUMNS = 4096, 512


def whole() -> dict[str, Any]:
    """Return the state as one process would have it."""
    rows = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS)
    return {
        "rows": rows,
        "columns": rows.t().contiguous().to(torch.bfloat16),
        "transposed": rows.t(),
        "vector": torch.arange(7, dtype=torch.int64),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
    }


PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "vector": Replicate()}


def sharded(blank: bool) -> dict[str, Any]:
    """Return this rank's part of the state, or room for it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state: dict[str, Any] = {}
    for name, tensor in whole().items():
        if name in PLACEMENTS:
            tensor = distribute_tensor(tensor, mesh, [PLACEMENTS[name]])
        state[name] = torch.zeros_like(tensor) if blank else tensor
    state["step"] = 0 if blank else 1000
    state["note"] = "" if blank else "an object"
    return state


def check(state: dict[str, Any]) -> None:
    """Compare what was loaded with what was saved, all of it on every rank."""
    for name, tensor in whole().items():
        found = state[name].full_tensor() if name in PLACEMENTS else state[name]
        assert torch.equal(found, tensor), name
    assert (state["step"], state["note"]) == (1000, "an object")


SAVE: dict[str, Callable[[Any, str], Any]] = {
    "fsspec": lambda state, url: dcp.save(state, storage_writer=FsspecWriter(url)),
    "native": lambda state, url: dcp.save(state, storage_writer=HillfireWriter(url)),
    "by-url": lambda state, url: dcp.save(state, checkpoint_id=url),
}
LOAD: dict[str, Callable[[Any, str], Any]] = {
    "fsspec": lambda state, url: dcp.load(state, storage_reader=FsspecReader(url)),
    "native": lambda state, url: dcp.load(state, storage_reader=HillfireReader(url)),
    "by-url": lambda state, url: dcp.load(state, checkpoint_id=url),
}


LOADS: list[Any] = []
"""What ``torch.load`` was called with: a tensor that is read in place does without."""


def spy_on_loads() -> None:
    """Note each call of ``torch.load``."""
    load = torch.load

    def spy(*arguments: Any, **options: Any) -> Any:
        LOADS.append(arguments)
        return load(*arguments, **options)

    torch.load = spy


def main() -> None:
    """Be one rank."""
    spy_on_loads()
    phase, url, rank, world, rendezvous = sys.argv[1:]
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world)
    )
    for how, save in SAVE.items():
        if phase == "first":
            save(sharded(blank=False), f"{url}/{how}")
        for name, load in LOAD.items():
            state = sharded(blank=True)
            LOADS.clear()
            load(state, f"{url}/{how}")
            check(state)
            if name == "native":  # objects, the transposed and the empty tensor
                assert len(LOADS) <= 4, LOADS
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
