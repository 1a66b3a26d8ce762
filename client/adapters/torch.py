"""torch.distributed.checkpoint over hillfire: torch's own format, durable, read by batches.

    dcp.save(state, storage_writer=HillfireWriter("hillfire:///checkpoints/step-1000"))
    dcp.load(state, storage_reader=HillfireReader("hillfire:///checkpoints/step-1000"))

``FsspecWriter`` works on the same URLs, but calls ``os.sync()`` on the trainer's own host where it
means a file's ``fsync``; ``HillfireWriter`` syncs the files that it wrote, on all replicas, and the
name that makes the checkpoint valid. What either writes, either reader reads.
"""

import os
from typing import Any

from fsspec.core import url_to_fs
from torch.distributed.checkpoint._fsspec_filesystem import (
    FileSystem,
    FsspecReader,
    FsspecWriter,
)


class Checkpoints(FileSystem):  # type: ignore[misc]
    """The file system that torch's writer and reader see."""

    def init_path(self, path: Any, **options: Any) -> Any:
        """Take the file system of a URL: one whose files are durable when they are closed."""
        self.fs, _ = url_to_fs(path, durable=True, **options)
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        """Give a file its final name, durably: with that the checkpoint is there."""
        super().rename(path, new_path)
        with self.fs.open(os.fspath(new_path), "r+b"):
            pass  # closing it syncs its name


class HillfireWriter(FsspecWriter):  # type: ignore[misc]
    """``FsspecWriter`` whose checkpoint outlives the loss of power when ``dcp.save`` returned."""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``path``: a ``hillfire://`` URL of a directory; ``options`` as of ``FsspecWriter``."""
        super().__init__(path, sync_files=False, **options)
        self.fs = Checkpoints()
        self.path = self.fs.init_path(path)


class HillfireReader(FsspecReader):  # type: ignore[misc]
    """``FsspecReader``."""
