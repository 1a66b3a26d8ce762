"""torch.distributed.checkpoint over hillfire: torch's own format, durable, read in place.

    dcp.save(state, storage_writer=HillfireWriter("hillfire:///checkpoints/step-1000"))
    dcp.load(state, storage_reader=HillfireReader("hillfire:///checkpoints/step-1000"))

``FsspecWriter`` works on the same URLs, but calls ``os.sync()`` on the trainer's own host where it
means a file's ``fsync``; ``HillfireWriter`` syncs the files that it wrote, on all replicas, and the
name that makes the checkpoint valid. ``HillfireReader`` reads a plain tensor, or the rows or
columns of one that a rank wants, into the memory of the tensor that it is for, all of a file's in
few batches; the rest goes through ``torch.load``. What either writes, either reader reads.
"""

import dataclasses
import os
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from fsspec.core import url_to_fs
from torch.distributed.checkpoint._fsspec_filesystem import (
    FileSystem,
    FsspecReader,
    FsspecWriter,
)
from torch.distributed.checkpoint.planner import LoadItemType

from hillfire.client.actions import Operation
from hillfire.client.adapters.fetching import read_into, read_runs
from hillfire.client.adapters.moving import using
from hillfire.client.adapters.torch_archive import (
    HEAD_BYTES,
    TAIL_BYTES,
    Runs,
    find_tensor,
    runs_wanted,
)
from hillfire.client.stream import Stream
from hillfire.proto.wire.base import Part
from hillfire.region import Region


class Checkpoints(FileSystem):  # type: ignore[misc]
    """The file system that torch's writer and reader see."""

    def init_path(self, path: Any, **options: Any) -> Any:
        """Take the file system of a URL: one whose files are durable when they are closed."""
        self.fs, _ = url_to_fs(path, durable=True, **options)
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        """Give a file its final name, durably: with that the checkpoint is there."""
        super().rename(path, new_path)
        with self.fs.open(os.fspath(new_path), "r+b"):
            pass  # closing it syncs its name


class HillfireWriter(FsspecWriter):  # type: ignore[misc]
    """``FsspecWriter`` whose checkpoint outlives the loss of power when ``dcp.save`` returned."""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``path``: a ``hillfire://`` URL of a directory; ``options`` as of ``FsspecWriter``."""
        super().__init__(path, sync_files=False, **options)
        self.fs = Checkpoints()
        self.path = self.fs.init_path(path)


class _Landing(NamedTuple):
    """Where bytes of a file go."""

    offset: int
    """of the archive, in the file"""
    runs: Runs
    part: Part
    item: Any
    target: torch.Tensor


class HillfireReader(FsspecReader):  # type: ignore[misc]
    """``FsspecReader`` that reads tensors in place."""

    def __init__(self, path: str | os.PathLike[str], *, regions: Iterable[Region] = ()) -> None:
        """``path``: a ``hillfire://`` URL of a directory.

        ``regions``: memory of ``fs.register`` that holds tensors which will be loaded: storage
        nodes on this host fill those without a copy in this process.
        """
        super().__init__(path)
        self._regions = [region for region in regions if region.fd >= 0]

    def read_data(self, plan: Any, planner: Any) -> Any:
        """Read what the plan asks for: in place what can be, the rest as ``FsspecReader``."""
        files: dict[str, list[Any]] = {}
        for item in plan.items:
            files.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        rest: list[Any] = []
        fs = self.fs.fs
        for name, items in files.items():
            path = fs._strip_protocol(self.fs.concat_path(self.path, name))
            read = partial(self._read, items, planner)
            rest += fs._run(using(fs._core, path, "rb", read))
        return super().read_data(dataclasses.replace(plan, items=rest), planner)

    def _read(self, items: list[Any], planner: Any, stream: Stream) -> Operation[list[Any]]:
        """Read in place what can be of one file; return the other items."""
        tensors = [item for item in items if self._is_plain(item)]
        landings, taken = (yield from self._find(stream, tensors, planner)), set()
        reads = []
        for offset, runs, part, *_ in landings:
            if len(runs.starts) == 1:
                reads.append((offset + int(runs.starts[0]), part))
            else:
                places = part.offset + runs.places
                yield from read_runs(
                    stream._core, stream.extent, offset + runs.starts, places, runs.run_bytes, part
                )
        yield from read_into(stream._core, stream.extent, reads)
        for landing in landings:
            planner.commit_tensor(landing.item, landing.target)
            taken.add(id(landing.item))
        return [item for item in items if id(item) not in taken]

    def _is_plain(self, item: Any) -> bool:
        where = self.storage_data[item.storage_index]
        return item.type != LoadItemType.BYTE_IO and not where.transform_descriptors

    def _find(self, stream: Stream, items: list[Any], planner: Any) -> Operation[list[_Landing]]:
        """Learn where the tensors' bytes lie, by one batch of small reads."""
        slots = [self.storage_data[item.storage_index] for item in items]
        room = HEAD_BYTES + TAIL_BYTES
        region = Region.wrap(bytearray(room * len(slots)))
        ends = []
        for number, slot in enumerate(slots):
            head, tail = min(HEAD_BYTES, slot.length), min(TAIL_BYTES, slot.length)
            place = number * room
            ends.append((slot.offset, Part(region, place, head)))
            begin = slot.offset + slot.length - tail
            ends.append((begin, Part(region, place + HEAD_BYTES, tail)))
        yield from read_into(stream._core, stream.extent, ends)
        found = []
        for number, (item, slot) in enumerate(zip(items, slots, strict=True)):
            first, last = ends[2 * number][1], ends[2 * number + 1][1]
            head, tail = (
                bytes(region.view[part.offset : part.offset + part.length])
                for part in (first, last)
            )
            saved = find_tensor(head, tail, slot.length)
            if saved is None:
                continue
            target = planner.resolve_tensor(item).detach()
            if not _fits(target, saved.dtype, tuple(item.lengths)):
                continue
            runs = runs_wanted(saved, item.storage_offsets, item.lengths, target.stride())
            if runs is not None and runs.n_bytes == target.nbytes:
                part = self._memory_of(target, int(runs.places[-1]) + runs.run_bytes)
                found.append(_Landing(slot.offset, runs, part, item, target))
        return found

    def _memory_of(self, target: torch.Tensor, span: int) -> Part:
        """Return so many bytes of a tensor's memory: of a region if they lie in one of ours."""
        address = target.data_ptr()
        for region in self._regions:
            if region.address <= address and address + span <= region.address + region.size:
                return Part(region, address - region.address, span)
        memory = torch.empty(0, dtype=torch.uint8).set_(target.untyped_storage())
        first = target.storage_offset() * target.itemsize
        return Part(Region.wrap(memory.numpy()[first : first + span]), 0, span)


def _fits(target: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Tell whether bytes can be read into a tensor's memory as they are."""
    same = target.dtype == dtype and tuple(target.shape) == shape
    return same and target.device.type == "cpu" and target.nbytes > 0
