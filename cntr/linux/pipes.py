"""pipe(7) and splice(2): moving bytes between stream sockets without copying them into this process."""

from __future__ import annotations

import fcntl
import os

from cntr.linux.syscalls import _check, _Library, _LongFunction, _uint, _ulong

# linux/splice.h
SPLICE_F_MOVE, SPLICE_F_NONBLOCK = 1, 2
# linux/fcntl.h; fcntl has it since Python 3.10
F_SETPIPE_SZ = 1031
_splice = _Library(_LongFunction).splice


def splice(fd_in: int, fd_out: int, count: int) -> int:
    """splice(2) without blocking: move at most COUNT bytes; one of the fds is a pipe. Returns 0 at the end. Raises
    BlockingIOError, OSError.
    """
    flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
    return _check(_splice(fd_in, None, fd_out, None, _ulong(count), _uint(flags)), "splice")


def wide_pipe(size: int) -> tuple[int, int]:
    """(read end, write end) of a pipe of SIZE bytes, or as large as the user is allowed (pipe(7)); close-on-exec.
    Raises OSError.
    """
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(ends[1], F_SETPIPE_SZ, size)
    except OSError:  # EPERM: the user's pipes exceed their limit; a smaller one works too
        pass
    return ends
