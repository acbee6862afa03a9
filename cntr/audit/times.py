"""Time limits of sessions."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
WARNING_SECONDS = 60.0  # before the end
LATE_SECONDS = 20.0  # after it: longer than an end takes, so whoever is not done waits for the caller to read


def seconds(text: str) -> float | None:
    """Parse 30s, 5m, 8h or 1d; None if TEXT is not a time."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not number.isascii() or not number.isdecimal() or len(number) > 6 or not int(number):
        return None
    return int(number) * UNITS[unit]


def shown(limit: float) -> str:
    """A limit in the form in which it is typed."""
    unit = next(unit for unit in "dhms" if limit % UNITS[unit] == 0 or unit == "s")
    return f"{limit / UNITS[unit]:g}{unit}"


def overdue(limit: float) -> float:
    """When a session that begins now has ended unless its supervisor is stuck: in monotonic seconds."""
    return time.monotonic() + limit + LATE_SECONDS


class Term:
    """A session's time limit: it ends LIMIT seconds from now, with a warning a minute before."""

    __slots__ = ("end", "limit", "warning")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.end = time.monotonic() + limit
        self.warning: float | None = self.end - WARNING_SECONDS if limit > WARNING_SECONDS else None

    def __str__(self) -> str:
        return shown(self.limit)

    def patience(self) -> float:
        """Seconds until the warning or the end."""
        due = self.end if self.warning is None else self.warning
        return max(0.0, due - time.monotonic())

    def is_over(self, warn: Callable[[str], None]) -> bool:
        """Whether the time is over; calls WARN once before."""
        now = time.monotonic()
        if self.warning is not None and now >= self.warning:
            self.warning = None
            warn(f"the session ends in a minute: its time is {shown(self.limit)}")
        return now >= self.end


def print_no_more_after(limit: float) -> None:
    """LIMIT seconds from now, and a while, send this process's output to /dev/null.

    A caller who does not read what cntr prints, or fills the pipe, would keep it in a write(2) for ever. The signal
    interrupts the write, which is then repeated there.
    """
    signal.signal(signal.SIGALRM, _print_no_more)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
    signal.setitimer(signal.ITIMER_REAL, limit + LATE_SECONDS, LATE_SECONDS)


def _print_no_more(number: int, frame: object) -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)
