"""The line on a terminal while something takes long."""

from __future__ import annotations

import os
import sys
import time


class Progress:
    """A line on stderr for a copy that takes longer than a second, where stderr is a terminal."""

    __slots__ = ("begun", "done", "next", "shown", "size")

    def __init__(self) -> None:
        """Nothing moved yet."""
        self.begun, self.done, self.size, self.shown = time.monotonic(), 0, 0, False
        self.next = self.begun + 1 if os.isatty(2) else float("inf")

    def moved(self, count: int) -> None:
        """COUNT bytes more."""
        self.done += count
        now = time.monotonic()
        if now >= self.next:
            self.next, self.shown = now + 0.25, True
            rate = self.done / (now - self.begun)
            of = f" of {human(self.size)} ({min(100 * self.done // self.size, 100)} %)" if self.size else ""
            sys.stderr.write(f"\r\x1b[K{human(self.done)}{of}, {human(rate)}/s")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            self.shown = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def human(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
