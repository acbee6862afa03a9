"""A separate process for what may never end, not even by SIGKILL: a request that a FUSE server has read (fuse(4))."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os
import select

from cntr.linux import patience, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def let_go() -> None:
    """In a child that may be left behind: give up the caller's standard streams, since who reads them waits for every writer."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def bounded(work: Callable[[], object], seconds: float | None = None) -> None:
    """Do WORK in a separate process, which may be left behind; raise TimeoutError if it is not done
    within SECONDS.

    Its result and errors are dropped: what has succeeded there once is likely to succeed here in
    time.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = syscalls.fork()
    if pid == 0:
        try:
            for fd in (0, 1, 2, reading):
                os.close(fd)
            work()
        finally:
            os._exit(0)
    os.close(writing)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    try:
        if not poll.poll((patience.SECONDS if seconds is None else seconds) * 1000):
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError
        os.waitpid(pid, 0)
    finally:
        os.close(reading)
