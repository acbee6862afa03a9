"""The path of an open file (proc_pid_fd(5))."""

from __future__ import annotations

import os


def place_of(fd: int) -> str:
    """The path, without links, of what FD refers to; "" if it was removed, or is in another mount namespace."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    try:
        return path if os.path.samestat(os.lstat(path), os.fstat(fd)) else ""
    except OSError:
        return ""
