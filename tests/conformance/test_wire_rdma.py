"""The wire over RDMA, in short: a virtual machine boots (its kernel is kept) and runs one program.

Budget: 30 s, of which the boot takes 4. The whole suite over RDMA: deploy/test rdma.
"""

import sys

import pytest

from tests.rdma.machine import missing, run


@pytest.mark.timeout(240)
def test_rdma_in_short() -> None:
    if reason := missing():
        pytest.skip(reason)
    program = f"PYTHONPATH=. {sys.executable} tests/rdma/guest/short.py"
    environment = "WIRE_TEST_RDMA=10.1.0.2 WIRE_TEST_TIMEOUT_S=60"
    environment += " WIRE_TEST_RDMA_DEVICE=rxb:1:1 HILLFIRE_RDMA=rxa:1:1"
    ended = run(f"{environment} {program}", memory_mib=768, timeout_s=200)
    assert ended.status == 0, ended.output[-4000:]
    assert "rdma is well" in ended.output
