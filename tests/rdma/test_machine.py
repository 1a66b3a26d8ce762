"""The wire and a cluster over Soft-RoCE, in a virtual machine: reports what pytest says inside.

Budget: 3600 s on 2 cores; the guest's processor is emulated, 10 to 20 times slower than this one.
"""

import sys

import pytest

from tests.rdma.machine import missing, run

ENVIRONMENT = "export WIRE_TEST_RDMA=10.1.0.2 WIRE_TEST_TIMEOUT_S=60"
PYTEST = "{python} -m pytest -q -p no:cacheprovider --color=no --tb=short --timeout 600"


def in_guest(what: str, memory_mib: int, timeout_s: float) -> None:
    if reason := missing():
        pytest.skip(reason)
    python = PYTEST.format(python=sys.executable)
    ended = run(f"{ENVIRONMENT}; {python} {what}", memory_mib=memory_mib, timeout_s=timeout_s)
    print(ended.output)
    assert ended.status == 0, ended.output[-6000:]


@pytest.mark.timeout(1200)
def test_conformance_suite_of_the_wire() -> None:
    in_guest(
        'tests/conformance/test_wire.py -k "rdma or outlasts or death or pressure"', 2048, 1100
    )


@pytest.mark.timeout(900)
def test_devices() -> None:
    in_guest("tests/rdma/guest/test_device.py", 1536, 800)


@pytest.mark.timeout(1200)
def test_cluster_with_mount() -> None:
    in_guest("tests/rdma/guest/test_cluster.py", 3072, 1100)
