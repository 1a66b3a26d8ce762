"""``hillfire mount``: in the foreground as this process, or as one in the background."""

import dataclasses
import logging
from pathlib import Path

from hillfire import config, eventloop, observe
from hillfire.errors import Code, Error
from hillfire.local import mounts
from hillfire.local.process import die_with_parent, say_failed, say_ready

log = logging.getLogger(__name__)

MOUNT_TIMEOUT_S = 60.0


def run_mount(
    mountpoint: Path,
    address: str | None,
    path: Path | None,
    *,
    transport: str | None,
    allow_other: bool,
    foreground: bool,
    ready_fd: int | None,
    parent: int | None,
) -> None:
    """Mount a cluster's files."""
    if parent is not None:
        die_with_parent(parent)
    try:
        settings = _settings(mountpoint.absolute(), address, path, transport, allow_other)
        mounts.check_fuse()
        mounts.check_mountpoint(settings.mountpoint)
        if settings.allow_other:
            mounts.check_allow_other()
        if not foreground:
            _in_background(settings, path)
            return
        observe.setup("mount", settings.log_level)
        observe.name_process("mount")
        try:
            from hillfire.fuse.mount import run
        except ModuleNotFoundError as error:
            if error.name != "pyfuse3":
                raise
            raise Error(
                Code.NOT_SUPPORTED,
                "the mount needs pyfuse3: `sudo apt-get install fuse3 libfuse3-dev pkg-config gcc "
                "python3-dev`, then `pip install 'hillfire[mount]'`",
            ) from error
        eventloop.run(run(settings, lambda: say_ready(ready_fd)))
    except Error as error:
        say_failed(ready_fd, error)
        raise


def _settings(
    mountpoint: Path,
    address: str | None,
    path: Path | None,
    transport: str | None,
    allow_other: bool,
) -> config.MountConfig:
    """Combine the file, if there is one, with what the command line says."""
    if path is not None:
        loaded = config.load("mount", path)
        assert isinstance(loaded, config.MountConfig)
        settings = dataclasses.replace(loaded, mountpoint=mountpoint)
        if address is not None:
            settings = dataclasses.replace(settings, address=address)
    else:
        if address is None:
            from hillfire.cli.connect import last_cluster

            address = last_cluster()
        settings = config.MountConfig(address=address, mountpoint=mountpoint)
    if transport is not None:
        settings = dataclasses.replace(settings, transport=transport)
    if allow_other:
        settings = dataclasses.replace(settings, allow_other=True)
    return settings


def _in_background(settings: config.MountConfig, path: Path | None) -> None:
    import platformdirs

    from hillfire.local.daemon import run_in_background

    arguments = ["mount", str(settings.mountpoint), "--foreground", "--address", settings.address]
    if path is not None:
        arguments += ["--config", str(path.absolute())]
    if settings.transport is not None:
        arguments += ["--transport", settings.transport]
    if settings.allow_other:
        arguments += ["--allow-other"]
    name = str(settings.mountpoint).strip("/").replace("/", "-") or "root"
    log_path = platformdirs.user_state_path("hillfire") / f"mount-{name}.log"
    run_in_background(arguments, log_path, MOUNT_TIMEOUT_S)
    print(f"{settings.address} is mounted on {settings.mountpoint}")
    print(f"  unmount  hillfire umount {settings.mountpoint}")
    print(f"  log      {log_path}")
