"""Tensors of a ``.safetensors`` file, read straight into hillfire's memory and left there.

    weights = load_file("hillfire:///models/llm/model-00001.safetensors")
    some = load_file(url, names=["lm_head.weight"])

The format: eight bytes of length, a JSON header that tells dtype, shape and place of each tensor,
then their bytes. All of it goes into one region, whose memory the tensors share and keep alive;
storage nodes on the same host fill it themselves, so nothing is copied in this process. The same
as ``safetensors.torch.load_file`` otherwise, whose package is not needed to read.
"""

import json
import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from fsspec.core import url_to_fs

from hillfire.client.actions import Operation
from hillfire.client.adapters.fetching import read_bytes, read_into
from hillfire.client.core import Core
from hillfire.client.opening import readable
from hillfire.client.plan import Extent
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region

MAX_HEADER_BYTES = 100_000_000
"""As safetensors itself has it."""
FIRST_BYTES = 64 * 1024
"""Read at first: most headers are in it."""
ALIGNMENT = 64

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


class Described(NamedTuple):
    """A tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """in the file"""
    n_bytes: int


def load_file(
    path: str | os.PathLike[str], names: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file at a ``hillfire://`` URL, all or those of ``names``.

    Raises:
        Error: of the path, or CORRUPT if it is no safetensors file.
        KeyError: if there is no tensor of such a name.
    """
    fs, name = url_to_fs(os.fspath(path))
    loaded: dict[str, torch.Tensor] = fs._run(_load(fs._core, name, names))
    return loaded


def _load(core: Core, path: str, names: Iterable[str] | None) -> Operation[dict[str, torch.Tensor]]:
    extent = core.extent((yield from readable(core, path)))
    described = yield from _describe(core, extent, path)
    if names is not None:
        described = {name: described[name] for name in names}
    places, end = {}, 0
    for name, tensor in described.items():
        places[name] = end
        end += -(-tensor.n_bytes // ALIGNMENT) * ALIGNMENT
    region = Region.allocate(max(end, 1))
    reads = [
        (tensor.offset, Part(region, places[name], tensor.n_bytes))
        for name, tensor in described.items()
        if tensor.n_bytes
    ]
    yield from read_into(core, extent, reads)
    return {
        name: region.torch(tensor.dtype, tensor.shape, places[name])
        for name, tensor in described.items()
    }


def _describe(core: Core, extent: Extent, path: str) -> Operation[dict[str, Described]]:
    """Read and check the header."""
    first = yield from read_bytes(core, extent, 0, min(FIRST_BYTES, extent.length))
    length = int.from_bytes(first[:8], "little")
    begin = 8 + length
    if len(first) < 8 or length > MAX_HEADER_BYTES or begin > extent.length:
        raise Error(Code.CORRUPT, f"{path} is no safetensors file: its header is cut off")
    if begin > len(first):
        first = yield from read_bytes(core, extent, 0, begin)
    try:
        header: dict[str, Any] = json.loads(first[8:begin])
        header.pop("__metadata__", None)
        return {name: _described(each, begin, extent.length) for name, each in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Error(Code.CORRUPT, f"{path} is no safetensors file: {exc!r}") from exc


def _described(entry: dict[str, Any], begin: int, length: int) -> Described:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, end = entry["data_offsets"]
    n_bytes = math.prod(shape) * dtype.itemsize
    inside = 0 <= start <= end <= length - begin
    if not inside or end - start != n_bytes or min(shape, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape} at {start} to {end}")
    return Described(dtype, shape, begin + start, n_bytes)
