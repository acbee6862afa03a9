"""statx(2) for any thread. The buffer in ``file_syscalls`` belongs to one thread."""

from __future__ import annotations

import ctypes
import errno
import os

from cntr.linux.file_syscalls import (
    _ENTRY,
    AT_EMPTY_PATH,
    STATX_WANTED,
    Attributes,
    _fail,
    _get_errno,
    _statx,
    _unpack_statx,
)


def statx_fields(fd: int, name: bytes, flags: int = _ENTRY) -> tuple[int, ...] | None:
    """See ``file_syscalls.statx_fields``."""
    buffer = ctypes.create_string_buffer(256)
    if _statx(fd, name, flags, STATX_WANTED, ctypes.byref(buffer)) < 0:
        if _get_errno() == errno.ENOENT:
            return None
        raise _fail("statx", name)
    return _unpack_statx(buffer)


def statx(fd: int, name: bytes = b"", flags: int = _ENTRY | AT_EMPTY_PATH) -> Attributes:
    """See ``file_syscalls.statx``."""
    found = statx_fields(fd, name, flags)
    if found is None:
        raise OSError(errno.ENOENT, f"statx: {os.strerror(errno.ENOENT)}", str(name))
    return Attributes._make(found)


def mode_and_attributes(fd: int) -> tuple[int, int]:
    """See ``file_syscalls.mode_and_attributes``."""
    found = statx(fd)
    return found.mode, found.attributes
