"""What ``torch.save`` wrote, found and read without ``torch.load``. Budget: 30 s."""

import io
import os
from typing import Any

import fsspec
import pytest

from tests.cluster import LocalCluster

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

import hillfire  # noqa: E402
from hillfire.client.adapters import torch_archive  # noqa: E402
from hillfire.client.adapters.torch import HillfireReader, HillfireWriter  # noqa: E402


def archive(tensor: Any) -> tuple[bytes, bytes, bytes]:
    """Return what torch.save makes of a tensor: whole, its head, its tail."""
    stream = io.BytesIO()
    torch.save(tensor, stream)
    data = stream.getvalue()
    return data, data[: torch_archive.HEAD_BYTES], data[-torch_archive.TAIL_BYTES :]


TENSORS = {
    "matrix": torch.arange(60_000, dtype=torch.float32).reshape(200, 300),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "bf16": torch.arange(3000).to(torch.bfloat16).reshape(3, 10, 100),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "bools": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j, 3 - 1j]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_plain_tensors_are_found(name: str) -> None:
    tensor = TENSORS[name]
    data, head, tail = archive(tensor)
    saved = torch_archive.find_tensor(head, tail, len(data))
    assert saved is not None and saved.dtype == tensor.dtype
    assert saved.shape == tuple(tensor.shape)
    raw = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
    assert data[saved.offset : saved.offset + len(raw)] == raw
    runs = torch_archive.runs_wanted(saved, [0] * tensor.dim(), saved.shape)
    assert runs is not None and runs.n_bytes == len(raw) and runs.starts.tolist() == [saved.offset]


@pytest.mark.parametrize(
    ("box", "count"),
    [
        (((50, 20), (0, 2000)), 1),
        (((0, 200), (500, 1000)), 200),
        (((7, 3), (1500, 500)), 3),
        (((199, 1), (0, 300)), 1),
        (((0, 0), (0, 2000)), 1),
    ],
)
def test_boxes_are_found(box: Any, count: int) -> None:
    matrix = torch.arange(400_000, dtype=torch.float32).reshape(200, 2000)
    data, head, tail = archive(matrix)
    saved = torch_archive.find_tensor(head, tail, len(data))
    assert saved is not None
    offsets, lengths = zip(*box, strict=True)
    runs = torch_archive.runs_wanted(saved, offsets, lengths)
    assert runs is not None and len(runs.starts) == count
    found = b"".join(data[start : start + runs.run_bytes] for start in runs.starts.tolist())
    wanted = matrix[box[0][0] : sum(box[0]), box[1][0] : sum(box[1])]
    assert found == bytes(wanted.contiguous().view(torch.uint8).numpy().data)


def test_boxes_of_three_axes() -> None:
    cube = torch.arange(4 * 5 * 1024, dtype=torch.float64).reshape(4, 5, 1024)
    data, head, tail = archive(cube)
    saved = torch_archive.find_tensor(head, tail, len(data))
    assert saved is not None
    runs = torch_archive.runs_wanted(saved, (1, 2, 0), (3, 2, 1024))
    assert runs is not None and len(runs.starts) == 3
    found = b"".join(data[start : start + runs.run_bytes] for start in runs.starts.tolist())
    assert found == cube[1:4, 2:4].contiguous().numpy().tobytes()
    wide = torch.zeros(3, 2, 4096, dtype=torch.float64)[
        :, :, 1024:1536
    ]  # into a part of a wider one
    runs = torch_archive.runs_wanted(saved, (1, 2, 512), (3, 2, 512), wide.stride())
    assert runs is not None and runs.places.tolist() == [4096 * 8 * row for row in range(6)]
    runs = torch_archive.runs_wanted(saved, (1, 0, 0), (3, 5, 1024), (5 * 4096, 4096, 1))
    assert runs is not None and len(runs.starts) == 15  # whole rows here, but not there
    runs = torch_archive.runs_wanted(saved, (1, 2, 512), (3, 2, 512))
    assert runs is not None and len(runs.starts) == 6
    found = b"".join(data[start : start + runs.run_bytes] for start in runs.starts.tolist())
    assert found == cube[1:4, 2:4, 512:].contiguous().numpy().tobytes()


def test_others_are_left_to_torch() -> None:
    matrix = TENSORS["matrix"]
    for other in (matrix.t(), [matrix], {"a": 1}, torch.nn.Parameter(matrix), matrix.to_sparse()):
        data, head, tail = archive(other)
        assert torch_archive.find_tensor(head, tail, len(data)) is None
    data, head, tail = archive(matrix)
    assert torch_archive.find_tensor(b"\0" * len(head), tail, len(data)) is None
    assert torch_archive.find_tensor(head, tail[:-30], len(data)) is None
    assert torch_archive.find_tensor(b"", b"", 0) is None
    saved = torch_archive.find_tensor(head, tail, len(data))
    assert saved is not None
    assert torch_archive.runs_wanted(saved, [0, 10], [200, 5]) is None  # too small pieces
    assert torch_archive.runs_wanted(saved, [199, 0], [2, 300]) is None  # past the end
    assert torch_archive.runs_wanted(saved, [0], [200]) is None


class Evil:
    """What a pickle of somebody else's might do."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/hillfire-evil",)


def test_nothing_of_a_pickle_is_run() -> None:
    data, head, tail = archive(Evil())
    assert torch_archive.find_tensor(head, tail, len(data)) is None
    assert not os.path.exists("/tmp/hillfire-evil")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_tensors_are_read_into_their_own_memory(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "hillfire:///in-place"
    large = torch.arange(6 << 20, dtype=torch.float32).reshape(6, 1 << 20)  # 24 MiB: three pieces
    state = {**TENSORS, "large": large, "step": 7}
    dcp.save(state, storage_writer=HillfireWriter(url))

    with hillfire.connect(running.address) as fs:
        region = fs.register(large.nbytes)
        again: dict[str, Any] = {name: torch.zeros_like(each) for name, each in TENSORS.items()}
        again |= {"large": region.torch(torch.float32, tuple(large.shape)), "step": 0}
        places = {name: each.data_ptr() for name, each in again.items() if name != "step"}

        loads: list[Any] = []
        load = torch.load

        def spy(*arguments: Any, **options: Any) -> Any:
            loads.append(arguments)
            return load(*arguments, **options)

        monkeypatch.setattr(torch, "load", spy)
        dcp.load(again, storage_reader=HillfireReader(url, regions=[region]))
        assert len(loads) <= 1  # the step, which is an object
        for name, place in places.items():
            assert torch.equal(again[name], state[name]) and again[name].data_ptr() == place
        assert again["step"] == 7


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_cut_file_is_an_error(running: LocalCluster) -> None:
    url = "hillfire:///cut"
    dcp.save({"a": torch.ones(1 << 20)}, storage_writer=HillfireWriter(url))
    fs = fsspec.filesystem("hillfire")
    (name,) = fs.glob("/cut/*.distcp")
    fs.client.truncate(name, 1 << 20)
    with pytest.raises(dcp.api.CheckpointException, match="shorter than it was"):
        dcp.load({"a": torch.zeros(1 << 20)}, storage_reader=HillfireReader(url))
