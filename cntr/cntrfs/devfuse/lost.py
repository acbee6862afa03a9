"""Signals that the kernel does not report: with rings an INTERRUPT can get lost.

If a signal arrives while a request is being copied to a ring's buffer, the kernel records it but never sends it
(fuse_uring_prepare_send() does not check, up to Linux 6.18 at least). A client waiting for a lock could then not be
killed. So the waiting threads are inspected: one that sleeps uninterruptibly in a lock request has received a signal.
"""

from __future__ import annotations

import time

from cntr.cntrfs.devfuse import wire
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.devfuse.rings import Rings

SECONDS = 0.25  # between two inspections, while a client waits for a lock


class SignalWatch:
    """Inspects the clients that wait for a lock."""

    def __init__(self, rings: Rings, interrupt: Callable[[int], object]) -> None:
        """interrupt: what an INTERRUPT of a request calls."""
        self._rings, self._interrupt = rings, interrupt
        self._next = 0.0

    def look(self) -> float | None:
        """Interrupt clients that got a signal; return seconds to the next inspection, None if nobody waits."""
        waiting = self._waiting()
        if waiting and time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS
            for unique, thread in waiting.items():
                if _state(thread) == "D":
                    self._interrupt(unique)
        return SECONDS if waiting else None

    def _waiting(self) -> dict[int, int]:
        """{request: thread} of the clients that wait for a lock, without threads of other pid namespaces."""
        parked = [
            wire.IN_HEADER.unpack_from(entry.view) for entry in list(self._rings.entries.values()) if entry.is_parked
        ]
        return {header[2]: header[6] for header in parked if header[1] == wire.SETLKW and header[6]}


def _state(thread: int) -> str:
    try:
        return procfs.read(f"/proc/{thread}/stat").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
