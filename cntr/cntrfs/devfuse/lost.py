"""Signals of clients that the kernel does not tell of: beside rings an INTERRUPT gets lost.

A signal that comes while a request is on its way to a ring's buffer is remembered by the kernel and never sent
(fuse_uring_prepare_send() does not look, up to Linux 6.18 at least). Who waits for a lock then can't be killed. So the threads
that wait are looked at: one that sleeps uninterruptibly in a lock request has had its signal.
"""

from __future__ import annotations

import time

from cntr.cntrfs.devfuse import wire
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.devfuse.rings import Rings

SECONDS = 0.25  # between two looks, while somebody waits for a lock


class SignalWatch:
    """Whoever waits for a lock, looked at in turns."""

    def __init__(self, rings: Rings, interrupt: Callable[[int], object]) -> None:
        """interrupt: what an INTERRUPT of a request does."""
        self._rings, self._interrupt = rings, interrupt
        self._next = 0.0

    def look(self) -> float | None:
        """Interrupt those who have got a signal; seconds to the next look, None while nobody waits."""
        waiting = self._waiting()
        if waiting and time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS
            for unique, thread in waiting.items():
                if _state(thread) == "D":
                    self._interrupt(unique)
        return SECONDS if waiting else None

    def _waiting(self) -> dict[int, int]:
        """{request: thread} of those who wait for a lock; a thread of another pid namespace is not among them."""
        parked = [
            wire.IN_HEADER.unpack_from(entry.view) for entry in list(self._rings.entries.values()) if entry.is_parked
        ]
        return {header[2]: header[6] for header in parked if header[1] == wire.SETLKW and header[6]}


def _state(thread: int) -> str:
    try:
        return procfs.read(f"/proc/{thread}/stat").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
