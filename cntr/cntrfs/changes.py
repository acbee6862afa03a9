"""The changes that a SETATTR request asks for."""

from __future__ import annotations

from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.backing import Caller

NOW = file_syscalls.UTIME_NOW


class Changes:
    """What SETATTR changes; None leaves a value unchanged. Times are (seconds, nanoseconds or NOW)."""

    __slots__ = ("atime", "gid", "killpriv", "mode", "mtime", "size", "uid")

    def __init__(self) -> None:
        self.mode: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.size: int | None = None  # bytes
        self.atime: tuple[int, int] | None = None
        self.mtime: tuple[int, int] | None = None
        self.killpriv: Caller | None = None  # truncation clears set-id bits: this caller lacks CAP_FSETID
