"""The clients of a run, as processes: started, told, ended, and judged together."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.faults.recording import Job, Outcome
from tests.history import Operation, load

END_TIMEOUT_S = 90.0
ROOT = Path(__file__).resolve().parents[2]


class Load:
    """The clients that run. Made by :func:`clients`."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        """Start a process for each."""
        self.jobs = jobs
        self._processes = []
        for job in jobs:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.faults.client"],
                stdin=subprocess.PIPE,
                cwd=ROOT,
                text=True,
                env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            )
            self._processes.append(process)
            self._tell(process, asdict(job))

    def tell(self, **order: object) -> None:
        """Give all of them an order."""
        for process in self._processes:
            self._tell(process, order)

    def _tell(self, process: "subprocess.Popen[str]", order: dict[str, object]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    def ended(self) -> list[str]:
        """Return the clients that have ended."""
        return [
            job.name
            for job, process in zip(self.jobs, self._processes, strict=True)
            if process.poll() is not None
        ]

    def end(self) -> None:
        """Let all come to their ends."""
        for process in self._processes:
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()
        deadline = time.monotonic() + END_TIMEOUT_S
        for job, process in zip(self.jobs, self._processes, strict=True):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"client {job.name} does not end") from None

    def kill(self) -> None:
        """End what did not end by itself."""
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()

    def outcomes(self) -> list[Outcome]:
        """Return what each client tells."""
        return [
            Outcome(**json.loads(Path(job.history).with_suffix(".outcome").read_text()))
            for job in self.jobs
        ]

    def operations(self) -> list[Operation]:
        """Return what all of them did, together."""
        return [each for job in self.jobs for each in load(job.history)]


@contextmanager
def clients(jobs: Sequence[Job]) -> Iterator[Load]:
    """Run clients; none is left."""
    made = Load(jobs)
    try:
        yield made
    finally:
        made.kill()
