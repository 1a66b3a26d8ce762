"""Hosts: namespaces that stand for machines, on a network that a test can cut.

A host is a network namespace (an address of its own, a cable to one switch), a mount namespace
(small disks that nobody else sees) and a boot id of its own, so that processes of two hosts do not
find that they share memory. A holder process keeps a host alive; with the holders, which end when
the test does, all of it is gone: nothing is named, mounted or linked outside.

A way from A to B is cut in A's neighbour table: what A sends to B goes to an address that no card
has, silently, also on connections that stand, while B may still reach A.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = "client"
"""The host of the test itself and of its clients."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NOWHERE = "02:de:ad:00:00:00"
_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "mount")
_TIMEOUT_S = 20.0


class Host:
    """One host."""

    def __init__(self, name: str, number: int, address: str, holder: int | None) -> None:
        """Take what ``network`` made."""
        self.name = name
        self.number = number
        self.address = address
        self.holder = holder
        """the process that keeps its namespaces; None: the host of the test"""

    def command(self, *arguments: str, mounts: bool = True) -> list[str]:
        """Return a command line that runs ``arguments`` on this host, as the same process."""
        if self.holder is None:
            return list(arguments)
        kinds = ["--net", "--mount"] if mounts else ["--net"]
        return ["nsenter", "-t", str(self.holder), *kinds, "--", *arguments]

    def run(self, *arguments: str, lines: str = "") -> str:
        """Run a command on this host to its end and return what it printed."""
        return _run(self.command(*arguments), lines)

    @property
    def mac(self) -> str:
        """Of its network card."""
        return f"02:00:00:00:00:{self.number:02x}"


class Network:
    """The hosts and what is cut between them. Made by :func:`network`."""

    def __init__(self, hosts: Sequence[Host], card: str) -> None:
        """Take what ``network`` made; ``card`` is the test host's."""
        self.hosts = {host.name: host for host in hosts}
        self._card = card
        self.cuts: set[tuple[str, str]] = set()

    def cut(self, ways: Sequence[tuple[str, str]]) -> None:
        """Let nothing through any more from the first to the second of each pair."""
        self._change(ways, False)
        self.cuts |= set(ways)

    def heal(self) -> None:
        """Let everything through again."""
        self._change(sorted(self.cuts), True)
        self.cuts.clear()

    def around(self, name: str, *, out: bool = True, into: bool = True) -> list[tuple[str, str]]:
        """Return the ways from (``out``) and to (``into``) one host."""
        others = [each for each in self.hosts if each != name]
        ways = [(name, other) for other in others] if out else []
        return ways + ([(other, name) for other in others] if into else [])

    def _change(self, ways: Sequence[tuple[str, str]], through: bool) -> None:
        by_source: dict[str, list[str]] = {}
        for source, destination in ways:
            by_source.setdefault(source, []).append(self._neighbour(source, destination, through))
        for source, lines in by_source.items():
            self.hosts[source].run("ip", "-batch", "-", lines="\n".join(lines) + "\n")

    def _neighbour(self, source: str, destination: str, through: bool) -> str:
        to = self.hosts[destination]
        card = self._card if self.hosts[source].holder is None else "eth0"
        mac = to.mac if through else _NOWHERE
        return f"neigh replace {to.address} lladdr {mac} dev {card} nud permanent"

    def know_each_other(self) -> None:
        """Fill every neighbour table, so that no question needs an answer's way back."""
        names = list(self.hosts)
        self._change([(a, b) for a in names for b in names if a != b], True)


def unavailable() -> str:
    """Return why there can be no such hosts here; empty if there can."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"missing {', '.join(missing)}"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    probe = ["unshare", "--net", "--mount", "ip", "link", "add", "type", "veth"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=_TIMEOUT_S)
    return "" if done.returncode == 0 else f"namespaces are refused: {done.stderr.strip()}"


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Make a host for each name, and one network of them and the host of the test."""
    card = f"hf{os.getpid()}"
    prefix = _free_prefix()
    holders: list[subprocess.Popen[bytes]] = []
    folder = Path(tempfile.mkdtemp(prefix="hillfire-hosts-"))
    try:
        switch = _hold(holders, folder)
        _run(["nsenter", "-t", str(switch), "--net", "ip", "-batch", "-"],
             "link add br0 type bridge\nlink set br0 up\n")  # fmt: skip
        hosts = [Host(HERE, 1, f"{prefix}.1", None)]
        for number, name in enumerate(names, 2):
            holder = _hold(holders, folder)
            hosts.append(Host(name, number, f"{prefix}.{number}", holder))
        for host in hosts:
            _connect(host, switch, card)
        made = Network(hosts, card)
        made.know_each_other()
        yield made
    finally:
        for process in holders:
            process.kill()
        for process in holders:
            process.wait()
        # The cable goes with the switch's namespace; it may take the kernel a moment.
        if Path(f"/sys/class/net/{card}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(["ip", "link", "del", card])
        shutil.rmtree(folder)


def _hold(holders: list[subprocess.Popen[bytes]], folder: Path) -> int:
    """Start a process that keeps namespaces of its own, and return it."""
    boot_id = folder / f"boot-{len(holders)}"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    script = f'mount --bind "$1" {_BOOT_ID} && ip link set lo up && echo ready && exec sleep inf'
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount"]
    holder = subprocess.Popen(
        [*command, "sh", "-c", script, "sh", str(boot_id)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    holders.append(holder)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"ready\n", "no namespaces"
    return holder.pid


def _connect(host: Host, switch: int, card: str) -> None:
    """Lay a cable from a host to the switch and give it its address."""
    port = f"p{host.number}"
    if host.holder is None:
        mine, where = card, ""
    else:
        mine, where = "eth0", f"netns {host.holder}"
    line = f"link add {mine} address {host.mac} {where} type veth peer name {port} netns {switch}"
    _run(["ip", *line.split()])
    _run(["nsenter", "-t", str(switch), "--net", "ip", "-batch", "-"],
         f"link set {port} master br0\nlink set {port} up\n")  # fmt: skip
    host.run("ip", "-batch", "-", lines=f"addr add {host.address}/24 dev {mine}\n"
             f"link set {mine} up\n")  # fmt: skip


def _free_prefix() -> str:
    """Return the first three numbers of a network that is not in use here."""
    used = _run(["ip", "-4", "route"])
    for offset in range(250):
        prefix = f"10.213.{(os.getpid() + offset) % 250}"
        if f"{prefix}." not in used:
            return prefix
    raise AssertionError("every network is taken")


def _run(command: Sequence[str], lines: str = "") -> str:
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, command, done.stdout, f"{done.stderr}\n{lines}"
        )
    return done.stdout
