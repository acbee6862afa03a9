"""Progress of long operations: a line on a terminal, nothing in a pipe, or events for a program."""

from __future__ import annotations

import os
import time

from cntr.errors import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Tell = Callable[[str, Mapping[str, object]], object]

QUIET_SECONDS = 1.0  # an operation that takes less shows nothing
BAR = 24  # columns


class Progress:
    """A count of bytes moved, shown on stderr if it is a terminal. size: the total, 0 if unknown.

    what: shown before the numbers; tell: called with each event instead (kind, fields). events: the default for tell,
    set by the command line if a program has asked for JSON.
    """

    __slots__ = ("begun", "done", "next", "shown", "size", "tell", "what")
    events: Tell | None = None

    def __init__(self, what: str = "", tell: Tell | None = None) -> None:
        self.what, self.tell = what, tell or Progress.events
        self.begun, self.done, self.size, self.shown = time.monotonic(), 0, 0, False
        self.next = self.begun + QUIET_SECONDS if self.tell or os.isatty(2) else float("inf")

    def moved(self, count: int) -> None:
        """Add COUNT bytes."""
        self.done += count
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + 0.25
        if self.tell:
            self.next = now + QUIET_SECONDS
            what = {"what": self.what.rstrip(": ")} if self.what else {}
            self.tell("progress", {**what, "bytes": self.done, "size": self.size})
        else:
            self._show(now)

    def say(self, text: str) -> None:
        """Show a line without numbers at once, if stderr is a terminal."""
        if self.tell:
            self.tell("waiting", {"text": text})
        elif self.next != float("inf"):
            self._line(text)

    def _show(self, now: float) -> None:
        rate = self.done / (now - self.begun)
        numbers = f"{human(self.done)}, {human(rate)}/s"
        if self.size:
            part = min(1.0, self.done / self.size)
            left = int((self.size - self.done) / rate) if rate and self.done < self.size else 0
            bar = "#" * int(part * BAR)
            numbers = f"[{bar.ljust(BAR, '.')}] {int(100 * part)} %, {human(self.done)} of {human(self.size)}, {human(rate)}/s"
            numbers += f", {left // 60}:{left % 60:02d} left"
        self._line(f"{self.what}{numbers}")

    def _line(self, text: str) -> None:
        """Show TEXT in a single row; a longer line could not be erased."""
        try:
            columns = os.get_terminal_size(2).columns or 80
        except OSError:
            columns = 80
        self.shown = True
        complain(f"\r\x1b[K{text[: columns - 1]}")

    def clear(self) -> None:
        """Erase the line."""
        if self.shown:
            self.shown = False
            complain("\r\x1b[K")


def human(count: float) -> str:
    """A number of bytes in human-readable form."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
