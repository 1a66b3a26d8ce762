"""What tests do to the files of a storage node's targets, and how they wait for the repair."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hillfire.cli.details import ask_node
from hillfire.cluster import Node
from hillfire.proto.storage_pb2 import ScrubRequest, ScrubState

WAIT_S = 30.0


def flip(directory: Path, data: bytes, at: int) -> None:
    """Flip one bit of a chunk that begins with ``data``, in whatever file below it lies."""
    found = 0
    for path in directory.rglob("*"):
        if not path.is_file() or not path.stat().st_blocks:
            continue
        place = path.read_bytes().find(data[:64])
        if place >= 0:
            with path.open("r+b") as file:
                file.seek(place + at)
                old = file.read(1)
                file.seek(place + at)
                file.write(bytes([old[0] ^ 1]))
            found += 1
    assert found == 1, f"the chunk lies in {found} files"


def until(true: Callable[[], object], what: object = "", timeout_s: float = WAIT_S) -> Any:
    """Ask again until the answer is true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not in time: {what() if callable(what) else what}"
        time.sleep(0.02)
    return found


def scrub_states(node: Node, *, start: bool = False) -> list[ScrubState]:
    return list(ask_node(node, ScrubRequest(start=start)).targets)


def scrubbed(node: Node) -> list[ScrubState]:
    """Have a node check all its chunks, and wait for the end."""
    before = {state.target: state.passes for state in scrub_states(node, start=True)}

    def done() -> list[ScrubState]:
        states = scrub_states(node)
        fine = all(s.passes > before[s.target] and not s.running for s in states)
        return states if fine else []

    found: list[ScrubState] = until(done, lambda: scrub_states(node))
    return found


def status(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
