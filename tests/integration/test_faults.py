"""Real processes under every kind of fault, with histories that are judged. Budget: 90 s.

Each kind happens at least once, in an order and at places that the seed draws. The same for ten
minutes: tests/long/test_faults.py.
"""

import os
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.aftermath import nothing_left
from tests.faults.hosts import HERE, network, unavailable
from tests.faults.run import run
from tests.faults.schedule import (
    COMBINED_FAULTS,
    DISK_FAULTS,
    NETWORK_FAULTS,
    PROCESS_FAULTS,
    Fault,
)

SEED = int(os.environ.get("HILLFIRE_SEED", "3"))


def once_each(source: random.Random, networked: bool) -> Iterator[Fault]:
    """Every kind of fault once, and one of those that combine several."""
    faults = [*PROCESS_FAULTS, source.choice(COMBINED_FAULTS)]
    faults += NETWORK_FAULTS + DISK_FAULTS if networked else ()
    source.shuffle(faults)
    yield from faults


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_a_way_that_is_cut_lets_nothing_through_and_the_way_back_everything(
    tmp_path: Path,
) -> None:
    with nothing_left(tmp_path), network(["a", "b", "c"]) as net:

        def sent(source: str, destination: str) -> bool:
            """Tell whether a datagram gets from one host to another."""
            address = net.hosts[destination].address
            receive = f"import socket; s = socket.socket(type=2); s.bind(('{address}', 7)); "
            receive += "print('bound', flush=True); print(s.recv(9), flush=True)"
            python = [sys.executable, "-c"]
            command = net.hosts[destination].command(*python, receive)
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as receiver:
                assert receiver.stdout is not None and receiver.stdout.readline() == "bound\n"
                send = f"import socket; socket.socket(type=2).sendto(b'x', ('{address}', 7))"
                net.hosts[source].run(*python, send)
                came, _, _ = select.select([receiver.stdout], [], [], 0.5)
                receiver.kill()
                return bool(came)

        assert sent("a", "b") and sent("b", "a") and sent(HERE, "a")
        net.cut([("a", "b")])
        assert not sent("a", "b") and sent("b", "a") and sent("a", "c")
        net.cut(net.around("c", out=False))
        assert not sent("a", "c") and not sent(HERE, "c") and sent("c", "a")
        net.heal()
        assert sent("a", "b") and sent("a", "c") and sent(HERE, "c")


@pytest.mark.timeout(240)
def test_every_kind_of_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        world = run(tmp_path, SEED, once_each, name="short")
    kills = world.figures["writes resume after a kill"]
    both = world.figures["writes resume after the leading manager and a node died"]
    assert max(kills) < 10 and max(both) < 15, "far from the goals of 3 and 6 s"
