"""The one error type, and the one table: code, errno, gRPC status, may it be tried again?

Every operating error that crosses a module border is an :class:`Error`. Foreign exceptions are
translated only in the module that imports their library. A programmer's error is an assertion.
"""

import errno
from enum import IntEnum
from typing import NamedTuple


class Code(IntEnum):
    """What went wrong, as a number that fits a wire frame. Never reuse or renumber one."""

    OK = 0
    # of the name space: POSIX answers, final
    NOT_FOUND = 1
    EXISTS = 2
    NOT_DIRECTORY = 3
    IS_DIRECTORY = 4
    NOT_EMPTY = 5
    ACCESS = 6
    NOT_PERMITTED = 7
    NAME_TOO_LONG = 8
    TOO_MANY_LINKS = 9
    LOOP = 10
    NO_ATTRIBUTE = 11
    INVALID = 12
    TOO_LARGE = 13
    NO_SPACE = 14
    STALE = 15
    CROSS_DEVICE = 16
    BUSY = 17
    RANGE = 18
    NOT_SUPPORTED = 19
    # of the protocol: the client's core handles them, users see them only after its deadline
    WRONG_CHAIN_VERSION = 40
    NOT_SERVING = 41
    LEASE_EXPIRED = 42
    NOT_COMMITTED = 43
    STALE_EPOCH = 44
    CONFLICT = 45
    CHECKSUM = 46
    MISSING_UPDATE = 47
    UNAVAILABLE = 48
    OVERLOADED = 49
    NOT_LEADER = 50
    # of processes and peers
    TIMED_OUT = 60
    CONNECTION = 61
    PROTOCOL = 62
    WRONG_PEER_VERSION = 63
    UNAUTHENTICATED = 64
    WRONG_CLUSTER = 65
    CONFIGURATION = 66
    CORRUPT = 67
    IO = 68
    INTERNAL = 69
    CANCELLED = 70


class Meaning(NamedTuple):
    """A row of the table. ``grpc`` is the name of a ``grpc.StatusCode``."""

    errno: int
    grpc: str
    retry: bool


TABLE: dict[Code, Meaning] = {
    Code.OK: Meaning(0, "OK", False),
    Code.NOT_FOUND: Meaning(errno.ENOENT, "NOT_FOUND", False),
    Code.EXISTS: Meaning(errno.EEXIST, "ALREADY_EXISTS", False),
    Code.NOT_DIRECTORY: Meaning(errno.ENOTDIR, "FAILED_PRECONDITION", False),
    Code.IS_DIRECTORY: Meaning(errno.EISDIR, "FAILED_PRECONDITION", False),
    Code.NOT_EMPTY: Meaning(errno.ENOTEMPTY, "FAILED_PRECONDITION", False),
    Code.ACCESS: Meaning(errno.EACCES, "PERMISSION_DENIED", False),
    Code.NOT_PERMITTED: Meaning(errno.EPERM, "PERMISSION_DENIED", False),
    Code.NAME_TOO_LONG: Meaning(errno.ENAMETOOLONG, "INVALID_ARGUMENT", False),
    Code.TOO_MANY_LINKS: Meaning(errno.EMLINK, "FAILED_PRECONDITION", False),
    Code.LOOP: Meaning(errno.ELOOP, "FAILED_PRECONDITION", False),
    Code.NO_ATTRIBUTE: Meaning(errno.ENODATA, "NOT_FOUND", False),
    Code.INVALID: Meaning(errno.EINVAL, "INVALID_ARGUMENT", False),
    Code.TOO_LARGE: Meaning(errno.EFBIG, "OUT_OF_RANGE", False),
    Code.NO_SPACE: Meaning(errno.ENOSPC, "RESOURCE_EXHAUSTED", False),
    Code.STALE: Meaning(errno.ESTALE, "NOT_FOUND", False),
    Code.CROSS_DEVICE: Meaning(errno.EXDEV, "FAILED_PRECONDITION", False),
    Code.BUSY: Meaning(errno.EBUSY, "FAILED_PRECONDITION", False),
    Code.RANGE: Meaning(errno.ERANGE, "OUT_OF_RANGE", False),
    Code.NOT_SUPPORTED: Meaning(errno.EOPNOTSUPP, "UNIMPLEMENTED", False),
    Code.WRONG_CHAIN_VERSION: Meaning(errno.EIO, "ABORTED", True),
    Code.NOT_SERVING: Meaning(errno.EIO, "UNAVAILABLE", True),
    Code.LEASE_EXPIRED: Meaning(errno.EIO, "UNAVAILABLE", True),
    Code.NOT_COMMITTED: Meaning(errno.EIO, "ABORTED", True),
    Code.STALE_EPOCH: Meaning(errno.ESTALE, "ABORTED", False),
    Code.CONFLICT: Meaning(errno.EAGAIN, "ABORTED", True),
    Code.CHECKSUM: Meaning(errno.EIO, "DATA_LOSS", True),
    Code.MISSING_UPDATE: Meaning(errno.EIO, "ABORTED", True),
    Code.UNAVAILABLE: Meaning(errno.EIO, "UNAVAILABLE", True),
    Code.OVERLOADED: Meaning(errno.EAGAIN, "RESOURCE_EXHAUSTED", True),
    Code.NOT_LEADER: Meaning(errno.EIO, "UNAVAILABLE", True),
    Code.TIMED_OUT: Meaning(errno.ETIMEDOUT, "DEADLINE_EXCEEDED", True),
    Code.CONNECTION: Meaning(errno.EIO, "UNAVAILABLE", True),
    Code.PROTOCOL: Meaning(errno.EPROTO, "INVALID_ARGUMENT", False),
    Code.WRONG_PEER_VERSION: Meaning(errno.EPROTO, "FAILED_PRECONDITION", False),
    Code.UNAUTHENTICATED: Meaning(errno.EACCES, "UNAUTHENTICATED", False),
    Code.WRONG_CLUSTER: Meaning(errno.EIO, "FAILED_PRECONDITION", False),
    Code.CONFIGURATION: Meaning(errno.EINVAL, "INVALID_ARGUMENT", False),
    Code.CORRUPT: Meaning(errno.EIO, "DATA_LOSS", False),
    Code.IO: Meaning(errno.EIO, "INTERNAL", False),
    Code.INTERNAL: Meaning(errno.EIO, "INTERNAL", False),
    Code.CANCELLED: Meaning(errno.ECANCELED, "CANCELLED", False),
}


class Error(OSError):
    """An operating error with a cause that a user can read and, where there is one, a remedy.

    ``Error(Code.NOT_FOUND)`` is also a ``FileNotFoundError``, and so on for each code that has a
    built-in exception: code written for local files catches what it always caught.
    """

    code: Code

    def __new__(cls, code: Code, message: str = "", *, path: str | None = None) -> "Error":
        """Choose the subclass that is the built-in exception of this code as well.

        ``message`` says what happened and, where something can be done about it, what.
        """
        kind = _KINDS.get(code, cls) if cls is Error else cls
        text = message or code.name.lower().replace("_", " ")
        args = (TABLE[code].errno, text) if path is None else (TABLE[code].errno, text, path)
        return OSError.__new__(kind, *args)

    def __init__(self, code: Code, message: str = "", *, path: str | None = None) -> None:
        """Remember the code; ``OSError`` took the rest in ``__new__``."""
        self.code = Code(code)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by code, for multiprocessing users."""
        return _restore, (int(self.code), self.strerror, self.filename)

    @property
    def retry(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return TABLE[self.code].retry


def _restore(code: int, message: str, path: str | None) -> Error:
    return Error(Code(code), message, path=path)


def _kinds() -> dict[Code, type[Error]]:
    """Make the subclass of each code whose errno has a built-in exception."""
    made: dict[Code, type[Error]] = {}
    for code, meaning in TABLE.items():
        builtin = type(OSError(meaning.errno, ""))
        if builtin is not OSError:
            made[code] = type("Error", (Error, builtin), {"__module__": __name__})
    return made


_KINDS: dict[Code, type[Error]] = {}
_KINDS.update(_kinds())
