"""Non-blocking locks: on open file descriptions (fcntl(2), F_OFD_*), and flock(2)."""

from __future__ import annotations

import fcntl
import os
import struct

F_OFD_GETLK, F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("=hhxxxxqqixxxx")  # l_type l_whence l_start l_len l_pid


def set_range(fd: int, kind: int, start: int, length: int) -> None:
    """F_OFD_SETLK: lock, convert or unlock LENGTH bytes (0: to the end). EAGAIN if another description holds some of
    them.
    """
    fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def blocking_range(fd: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """F_OFD_GETLK: (kind, start, length, pid) of the first conflicting lock. F_UNLCK: none; pid -1: an OFD lock."""
    answer = fcntl.fcntl(fd, F_OFD_GETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    kind, _, start, length, pid = _FLOCK.unpack(answer)
    return kind, start, length, pid


def try_flock(fd: int, kind: int) -> bool:
    """flock(2), given a KIND of fcntl(2); False if another description holds a lock. A failed conversion loses the old
    lock.
    """
    operation = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX}.get(kind, fcntl.LOCK_UN)
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
