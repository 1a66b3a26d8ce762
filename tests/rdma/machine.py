"""A throw-away virtual machine with Soft-RoCE devices, for machines whose kernel has no RDMA.

Two files boot it, built once from Debian's packages and kept: an ELF kernel (PVH boot: no boot
loader, no decompression in the guest) and a small initial file system with the modules. The guest
has no disk: it sees this machine's root folder read-only over 9p, under a tmpfs overlay, so the
interpreter, the virtual environment and the checkout are there as they are.

    python -m tests.rdma.machine build           what CI keeps between runs
    python -m tests.rdma.machine run COMMAND...  boot, run a command in the checkout, print

Needs: qemu-system-x86, and apt-get for the two packages that are downloaded and not installed.
"""

import compileall
import glob
import gzip
import io
import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "veth", "fuse"]
MODULES += ["ib_uverbs", "rdma_ucm", "rdma_rxe", "crc32_generic", "crc32c_generic", "crc32c_intel"]
COMPILED = ("meta", "storage", "client", "fuse", "proto", "src", "tests")
SPACE = Path(os.environ.get("HILLFIRE_RDMA_VM", "~/.cache/hillfire/rdma-vm")).expanduser()
"""Where the two files are kept."""

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for m in $(cat /modules/order); do insmod /modules/$m || echo "no module $m"; done
mkdir -p /host /ovl /root_
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host || poweroff -f
mount -t tmpfs tmpfs /ovl; mkdir -p /ovl/up /ovl/work
mount -t overlay -o lowerdir=/host,upperdir=/ovl/up,workdir=/ovl/work overlay /root_ || poweroff -f
for d in proc sys dev; do mkdir -p /root_/$d; mount --move /$d /root_/$d; done
mkdir -p /root_/dev/pts /root_/dev/shm /root_/mnt/w
mount -t devpts devpts /root_/dev/pts; mount -t tmpfs shm /root_/dev/shm
mount -t tmpfs tmp /root_/run; mount -t tmpfs tmp /root_/tmp; chmod 1777 /root_/tmp
mount -t 9p -o rw,trans=virtio,version=9p2000.L,cache=none share /root_/mnt/w
exec chroot /root_ /bin/bash /mnt/w/script
"""

SCRIPT = r"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=1
ip link set lo up
ip link add va type veth peer name vb
for x in a:1 b:2; do
  ip link set v${x%:*} mtu 9000 up; ip addr add 10.1.0.${x#*:}/24 dev v${x%:*}
done
for i in all va vb; do
  echo 1 > /proc/sys/net/ipv4/conf/$i/accept_local; echo 0 > /proc/sys/net/ipv4/conf/$i/rp_filter
done
ip neigh add 10.1.0.2 dev va lladdr "$(cat /sys/class/net/vb/address)" nud permanent
ip neigh add 10.1.0.1 dev vb lladdr "$(cat /sys/class/net/va/address)" nud permanent
for l in a b; do rdma link add rx$l type rxe netdev v$l; done
"""
"""Two devices, rxa and rxb, on the ends of a veth pair: two hosts in one kernel."""


_REACH = """
[ -d $checkout ] || {
  mkdir -p $checkout
  mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose checkout $checkout
}
"""
"""The guest's /tmp and /run are its own: a checkout there is mounted by itself."""


class Ended(NamedTuple):
    """What became of a command in the guest."""

    status: int
    """its exit status; -1 if the guest did not get so far"""
    output: str


def missing() -> str:
    """Return what is missing for a virtual machine on this host, empty if nothing is."""
    if shutil.which("qemu-system-x86_64") is None:
        return "no qemu-system-x86_64: deploy/test rdma installs it"
    if not (SPACE / "vmlinux").exists() and shutil.which("apt-get") is None:
        return "the guest's kernel comes from Debian's packages, and there is no apt-get"
    probe = [sys.executable, "-c", "import pyverbs.qp"]
    if subprocess.run(probe, capture_output=True).returncode:
        return f"no pyverbs for {sys.executable}: deploy/test rdma installs Debian's"
    return ""


def run(command: str, *, memory_mib: int = 1024, timeout_s: float = 300) -> Ended:
    """Boot, run a bash command in the checkout as root, and power off."""
    build()
    for folder in COMPILED:  # the guest would take 20 times as long, in each process again
        compileall.compile_dir(CHECKOUT / folder, quiet=2)
    with tempfile.TemporaryDirectory(prefix="hillfire-rdma-") as share:
        body = f"{_REACH}cd $checkout\n( {command} ) 2>&1\n".replace(
            "$checkout", shlex.quote(str(CHECKOUT))
        )
        ending = "echo $? > /mnt/w/status; sync; echo o > /proc/sysrq-trigger; sleep 9\n"
        Path(share, "script").write_text(f"{SCRIPT}{body}{ending}")
        machine = subprocess.Popen(
            _qemu(share, memory_mib), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        try:
            output = machine.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            machine.kill()
            output = machine.communicate()[0] + f"\nno end within {timeout_s:.0f} s"
        status = Path(share, "status")
        return Ended(int(status.read_text()) if status.exists() else -1, output)


def _qemu(share: str, memory_mib: int) -> list[str]:
    # TCG, always: /dev/kvm may be there and have no hardware behind it.
    kernel = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on tsc=reliable"
    shared = f"local,path={share},mount_tag=share,security_model=none"
    host = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    checkout = f"local,path={CHECKOUT},mount_tag=checkout,security_model=none,readonly=on"
    return [
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-monitor", "none", "-append", kernel),
        *("-kernel", str(SPACE / "vmlinux"), "-initrd", str(SPACE / "initrd.img")),
        *("-virtfs", host, "-virtfs", shared, "-virtfs", checkout),
    ]


def build() -> None:
    """Make the kernel and the initial file system, if they are not there."""
    if (SPACE / "vmlinux").exists() and (SPACE / "initrd.img").exists():
        return
    SPACE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hillfire-rdma-") as folder:
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-amd64"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        kernel = re.search(r"Depends: (linux-image-[\w.+-]+-amd64)", depends)
        assert kernel is not None, depends
        vmlinux, modules = b"", {}
        wanted = re.compile(
            r"^\./boot/vmlinuz|/kernel/(drivers/(virtio|net/[^/]*$|infiniband/(core|sw))"
            r"|net|fs|lib|crypto|arch/x86/crypto)"
        )
        for name, data in _files(_download(kernel[1] + "-unsigned", folder), wanted):
            if name.startswith("./boot/"):
                vmlinux = _unpacked(data)
            elif name.endswith((".ko", ".ko.xz")):
                plain = lzma.decompress(data) if name.endswith(".xz") else data
                module = os.path.basename(name).removesuffix(".xz").removesuffix(".ko")
                modules[module.replace("-", "_")] = plain
        box = dict(_files(_download("busybox-static", folder), re.compile(r"/bin/busybox$")))
    (SPACE / "initrd.img").write_bytes(_initial(modules, next(iter(box.values()))))
    (SPACE / "vmlinux").write_bytes(vmlinux)


def _download(package: str, folder: str) -> str:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
    subprocess.run(command, check=True, cwd=folder)
    return glob.glob(f"{folder}/{package}_*.deb")[0]


def _files(package: str, wanted: "re.Pattern[str]") -> Iterator[tuple[str, bytes]]:
    """Yield name and content of a package's regular files whose name matches."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        with tarfile.open(fileobj=tar.stdout, mode="r|") as members:
            for member in members:
                if member.isfile() and wanted.search(member.name):
                    file = members.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()


def _unpacked(image: bytes) -> bytes:
    """Return the ELF kernel inside a boot image."""
    openers = ((b"\xfd7zXZ\0", lzma.LZMADecompressor), (b"\x1f\x8b\x08", None))
    for magic, opener in openers:
        at = image.find(magic)
        while at >= 0:
            try:
                if opener is not None:
                    plain = opener().decompress(image[at:])
                else:
                    plain = gzip.GzipFile(fileobj=io.BytesIO(image[at:])).read()
                if plain[:4] == b"\x7fELF":
                    return plain
            except (lzma.LZMAError, OSError, EOFError):
                pass
            at = image.find(magic, at + 1)
    raise ValueError("no kernel that this can unpack")


def _initial(modules: dict[str, bytes], busybox: bytes) -> bytes:
    """Return the initial file system: busybox, the modules in order, and what starts them."""
    order: list[str] = []

    def need(module: str) -> None:
        if module in order or module not in modules:
            return  # or it is built in
        found = re.search(rb"\0depends=([^\0]*)\0", modules[module])
        for other in found[1].decode().split(",") if found else ():
            need(other.replace("-", "_"))
        order.append(module)

    for module in MODULES:
        need(module.replace("-", "_"))
    folder, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [(name, folder, b"") for name in ("bin", "dev", "proc", "sys", "modules")]
    entries += [("bin/busybox", file, busybox), ("init", file, INIT.encode())]
    entries += [("modules/order", file, "\n".join(f"{m}.ko" for m in order).encode())]
    entries += [(f"modules/{module}.ko", file, modules[module]) for module in order]
    archive = io.BytesIO()
    for number, (name, mode, data) in enumerate(entries, 1):
        _entry(archive, number, name, mode, data)
    _entry(archive, 0x7FFF, "dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    _entry(archive, 0, "TRAILER!!!", 0, b"")
    return archive.getvalue()


def _entry(
    archive: io.BytesIO,
    number: int,
    name: str,
    mode: int,
    data: bytes,
    device: tuple[int, int] = (0, 0),
) -> None:
    """Append one entry in cpio's "newc" format."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    archive.write(b"070701" + b"".join(b"%08X" % field for field in fields) + path)
    archive.write(b"\0" * (-archive.tell() % 4))
    archive.write(data)
    archive.write(b"\0" * (-archive.tell() % 4))


if __name__ == "__main__":
    if sys.argv[1:] == ["build"]:
        build()
        print(f"kernel and initial file system in {SPACE}")
    elif sys.argv[1:2] == ["run"] and sys.argv[2:]:
        ended = run(shlex.join(sys.argv[2:]), memory_mib=2048, timeout_s=3600)
        print(ended.output, end="")
        sys.exit(ended.status)
    else:
        sys.exit(__doc__)
