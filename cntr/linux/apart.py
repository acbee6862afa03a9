"""A process of its own for what may never end, not by SIGKILL either: a request that a server of FUSE has read (fuse(4))."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os
import select

from cntr.linux import patience, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def bounded(work: Callable[[], object], seconds: float | None = None) -> None:
    """Do WORK in a process of its own, which may be left behind; raises TimeoutError where it is not done within SECONDS.

    Its result and its errors are nobody's: what was done there once is likely to be done here in time.
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
