"""Regions as torch tensors, and tensors as the memory of batches. Budget: 20 s."""

import pytest
import torch

from hillfire.client.memory import place, register
from hillfire.errors import Error
from hillfire.region import Region


def test_torch_sees_the_same_memory() -> None:
    region = Region.allocate(8192)
    tensor = region.torch(torch.bfloat16, (2, -1))
    tensor.fill_(1.0)
    assert tensor.shape == (2, 2048) and region.numpy("<u2")[5] == 0x3F80
    assert torch.from_dlpack(region).data_ptr() == region.address
    with pytest.raises(Error):
        region.torch(torch.float32, (2049,))
    with pytest.raises(Error, match="read-only"):
        Region.wrap(b"abc").torch()
    known = register(8192)
    rows = known.torch(torch.bfloat16, (4, -1))
    found, places, lengths = place(rows[1:], 3, None, None)
    assert (
        found is known and places.tolist() == [2048, 4096, 6144] and lengths.tolist() == [2048] * 3
    )
    foreign = torch.zeros(4, 8, dtype=torch.bfloat16)
    found, places, lengths = place(foreign, 4, None, None)
    assert found.fd < 0 and found.address == foreign.data_ptr() and lengths.tolist() == [16] * 4
    with pytest.raises(Error):
        place(foreign.t(), 8, None, None)
    with pytest.raises(Error, match="meta"):
        place(torch.zeros(4, device="meta"), 4, None, None)
