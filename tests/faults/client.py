"""A client as a process: writes and reads colliding chunks, records what it asked and what came.

``python -m tests.faults.client``: a line of JSON on standard input says how. More lines may follow:
``{"file": PATH}`` goes on with another file, ``{"full": true}`` allows NO_SPACE from now on; the
end of the input ends it. Its history remains, and an outcome: what went wrong, and figures.
"""

import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.recording import Client, Job
from tests.faults.styles import STYLES
from tests.history import dump

MAX_ERRORS = 20
"""Then a client gives up."""


def run(client: Client) -> None:
    """Work until told to end; then leave the history."""
    job = client.job
    style = STYLES[job.style](client)
    try:
        while not client.ended.is_set() and len(client.outcome.errors) < MAX_ERRORS:
            began = time.monotonic()
            style.turn(client.file)
            took = time.monotonic() - began
            client.outcome.longest_s = max(client.outcome.longest_s, took)
            client.ended.wait(max(0.0, style.operations / job.rate - took))
    finally:
        client.outcome.operations = len(client.recorder.operations)
        dump(job.history, client.recorder.operations)
        style.close()


def main() -> None:
    """Run the job of the first line."""
    said: dict[str, Any] = json.loads(sys.stdin.readline())
    client = Client(Job(**said))
    threading.Thread(target=client.listen, daemon=True).start()
    try:
        run(client)
    except Exception as error:
        client.outcome.errors.append(f"{client.job.name}: {type(error).__name__}: {error}")
    text = json.dumps(asdict(client.outcome))
    Path(client.job.history).with_suffix(".outcome").write_text(text)


if __name__ == "__main__":
    main()
