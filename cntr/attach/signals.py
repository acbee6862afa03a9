"""Signals on the caller's side: which ones are forwarded to a session, and an fd to read them from."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os

from cntr.linux import syscalls

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # sent by a terminal
END = signal.SIGRTMIN + 3  # sent by `cntr sessions end`; the C library may use 1 and 2
WATCHED = (*FORWARDED, signal.SIGCONT, signal.SIGCHLD, END)


class SignalFile:
    """The signals of this process as an fd. They are blocked before the fork, so that none is lost."""

    __slots__ = ("before", "fd")

    def __init__(self) -> None:
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self.fd = syscalls.signalfd(WATCHED)

    def read(self) -> list[tuple[int, int]]:
        """Return [(signal, si_code)] since the last call (signalfd(2))."""
        data = os.read(self.fd, 128 * 16)
        return [
            (int.from_bytes(data[i : i + 4], "little"), int.from_bytes(data[i + 8 : i + 12], "little", signed=True))
            for i in range(0, len(data), 128)
        ]

    def close(self) -> None:
        """Close the fd and restore the signal mask."""
        os.close(self.fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)
