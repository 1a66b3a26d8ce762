"""PyTorch's data loader: workers go on with the file system, and the file, of their parent.

Budget: 30 s.
"""

from typing import Any

import fsspec
import pytest

from tests.cluster import LocalCluster

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, Dataset  # noqa: E402

SAMPLES, SAMPLE = 64, 512


class Samples(Dataset):  # type: ignore[misc]
    """Samples of one file that is opened once, before there are workers."""

    def __init__(self, path: str) -> None:
        self.file = fsspec.filesystem("hillfire").open(path)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> Any:
        self.file.seek(number * SAMPLE)
        return torch.frombuffer(bytearray(self.file.read(SAMPLE)), dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "none"])
def test_a_data_loader(running: LocalCluster, method: str) -> None:
    fs = fsspec.filesystem("hillfire")
    fs.pipe("/samples", b"".join(bytes([number]) * SAMPLE for number in range(SAMPLES)))
    workers: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": method}
    loader = DataLoader(Samples("/samples"), 8, **(workers if method != "none" else {}))
    for _ in range(2):  # epochs: workers are made anew
        found = torch.cat(list(loader))
        assert torch.equal(found[:, 0], torch.arange(SAMPLES, dtype=torch.uint8))
        assert bool((found == found[:, :1]).all())
