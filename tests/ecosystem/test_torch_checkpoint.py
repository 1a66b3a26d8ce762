"""torch.distributed.checkpoint over a real cluster: four ranks save, four load, two reshard.

Budget: 90 s. Needs torch (``pip install torch==2.13.0`` brings the CPU build).
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import LocalCluster

pytest.importorskip("torch", reason="torch is not installed: deploy/test ecosystem installs it")

RANKS = Path(__file__).with_name("ranks.py")
TIMEOUT_S = 90.0


def run(running: LocalCluster, tmp_path: Path, phase: str, url: str, world: int) -> None:
    """Run a job of ``world`` ranks to its end; all must succeed."""
    rendezvous = tmp_path / f"rendezvous-{phase}"
    environment = {
        **running.environment,
        "HILLFIRE_ADDRESS": running.address,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANKS), phase, url, str(rank), str(world), str(rendezvous)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(said)


@pytest.mark.timeout(300)
def test_save_load_reshard(running: LocalCluster, tmp_path: Path) -> None:
    """Whatever wrote it, each reader reads it: the format is torch's."""
    url = f"hillfire://{running.address}/checkpoints/step-1000"
    run(running, tmp_path, "first", url, 4)
    run(running, tmp_path, "later", url, 2)
