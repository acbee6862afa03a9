"""The end of what a container prints: read for as long as anybody in it can write, so that it neither waits nor fills memory."""

from __future__ import annotations

import os
import select
import signal

from cntr.linux import apart, syscalls

KEPT = 1 << 16  # bytes
_SECONDS = 1.0  # for the last of it, once the container has ended


class BoundedOutput:
    """fd: to write to, closed by ``handed_over``. A child reads the other end and keeps the last KEPT bytes."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._kept = os.memfd_create("output", os.MFD_CLOEXEC)
        reading, self.fd = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _keep(reading, self._kept)
        os.close(reading)

    def handed_over(self) -> None:
        """Close our copy, after the fork of who writes; otherwise it would never end."""
        os.close(self.fd)
        self.fd = -1

    def end(self, *, complete: bool) -> str:
        """Its end as text. complete: who wrote has ended, so wait a moment for the last of it."""
        if complete and self._pid:
            pidfd = os.pidfd_open(self._pid)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(_SECONDS * 1000)
            os.close(pidfd)
        return os.pread(self._kept, KEPT, 0).decode("utf-8", "replace")

    def close(self) -> None:
        """End the child."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self.fd >= 0:
            self.handed_over()
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1


def _keep(reading: int, kept: int) -> None:
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        apart.let_go()
        low, high = sorted((reading, kept))
        for first, last in (
            (3, low),
            (low + 1, high),
            (high + 1, 1 << 20),
        ):  # our own end for writing, the guard's pipe
            os.closerange(first, last)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        data = b""
        while chunk := os.read(reading, KEPT):
            data = (data + chunk)[-KEPT:]
            os.pwrite(kept, data, 0)
    finally:
        os._exit(0)
