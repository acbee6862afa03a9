"""The progress that a server reports to its watchdog: requests taken and finished, in shared memory."""

from __future__ import annotations

import _thread  # the lock only: threading imports collections, functools and more, and an attach waits for it
import mmap


class Heartbeat:
    """Five numbers in anonymous shared memory, made before the fork.

    counters: requests taken, answered, parked, steps done; the id of the serving thread, 0 for the process's first
    thread. A session that serves in one loop, or in one thread at a time, writes the first two and the last itself.
    """

    __slots__ = ("_lock", "_map", "counters")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self.counters = memoryview(self._map).cast("Q")

    def began(self) -> None:
        """A request was taken from the kernel."""
        self.counters[0] += 1

    def ended(self) -> None:
        """A request was answered."""
        self.counters[1] += 1

    def park(self, change: int) -> None:
        """CHANGE more requests wait on purpose (for a lock): they do not indicate a hang."""
        with self._lock:
            self.counters[2] += change

    def moved(self) -> None:
        """A step of a long operation was done: bytes copied, a job finished. Two concurrent calls may count as one."""
        self.counters[3] += 1

    def read(self) -> tuple[int, int, int, int]:
        """(requests taken, answered, parked, steps done)."""
        return self.counters[0], self.counters[1], self.counters[2], self.counters[3]

    @property
    def serving_thread(self) -> int:
        """The id of the current or last serving thread; 0: the process's first thread."""
        return self.counters[4]
