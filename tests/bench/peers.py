"""Other file systems beside ours, on the same machine in the same run.

A peer runs in a network namespace of its own with an address on its loopback, keeps everything in
a directory of the benchmark's, and is gone afterwards. Needs root and the peer's package; without
them the benchmark says so and goes on.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ADDRESS = "10.77.0.1"
START_S = 30.0

VOLUME_FILE = """volume management
    type mgmt/glusterd
    option working-directory {home}/state
    option transport-type socket
    option transport.socket.listen-port 24007
    option run-directory {home}/run
end-volume
"""


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def first_line(*words: str) -> str:
    """Return the first line that a command prints: its name and version.

    Raises:
        OSError: if there is no such command.
    """
    return _run(*words).partition("\n")[0]


@contextlib.contextmanager
def namespace(name: str) -> Iterator[list[str]]:
    """Make a network namespace; yields the words that run a command in it. Ends what is in it."""
    _run("ip", "netns", "add", name)
    try:
        # Not `ip netns exec`, which would mount in a mount namespace of its own.
        inside = ["nsenter", f"--net=/var/run/netns/{name}"]
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run(*inside, "ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        yield inside
    finally:
        for signal in ("-TERM", "-KILL"):
            deadline = time.monotonic() + 10
            if pids := _run("ip", "netns", "pids", name).split():
                subprocess.run(["kill", signal, *pids], capture_output=True)
            while _run("ip", "netns", "pids", name).split() and time.monotonic() < deadline:
                time.sleep(0.05)
        _run("ip", "netns", "delete", name)


@contextlib.contextmanager
def glusterfs(home: Path, replicas: int) -> Iterator[Path]:
    """GlusterFS with one brick a replica, mounted; yields the mount point.

    Raises:
        OSError: with the reason why it cannot run here.
    """
    if os.geteuid() or not shutil.which("glusterd"):
        raise OSError("GlusterFS needs root and Debian's glusterfs-server")
    home.mkdir()
    (home / "glusterd.vol").write_text(VOLUME_FILE.format(home=home))
    for name in ("state", "run", "mount"):
        (home / name).mkdir()
    bricks = [f"{ADDRESS}:{home}/brick{number}" for number in range(replicas)]
    mount = home / "mount"
    with namespace(f"hf-peer-{os.getpid()}") as inside:
        daemon = subprocess.Popen(
            [*inside, "glusterd", "-N", "-f", f"{home}/glusterd.vol", "-l", f"{home}/glusterd.log",
             "-p", f"{home}/glusterd.pid"]
        )  # fmt: skip
        try:
            gluster = [*inside, "gluster", "--mode=script"]
            deadline = time.monotonic() + START_S
            while True:
                try:
                    _run(*gluster, "volume", "list")
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            copies = ["replica", str(replicas)] if replicas > 1 else []
            _run(*gluster, "volume", "create", "bench", *copies, *bricks, "force")
            _run(*gluster, "volume", "start", "bench")
            _run(*inside, "mount", "-t", "glusterfs", f"{ADDRESS}:/bench", str(mount))
            try:
                yield mount
            finally:
                _run("umount", str(mount))
                _run(*gluster, "volume", "stop", "bench", "force")
        finally:
            daemon.terminate()
            daemon.wait(20)
