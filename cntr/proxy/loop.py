"""An epoll(7) loop: ready fds and timers."""

from __future__ import annotations

import heapq
import itertools
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MOST_EVENTS = 512
FEW_TIMERS = 1024


def _nothing() -> None:
    """What a cancelled timer calls."""


class Timer:
    """A callback due at a time.monotonic() value."""

    __slots__ = ("callback", "due", "off")

    def __init__(self, due: float, callback: Callable[[], object]) -> None:
        self.due, self.callback, self.off = due, callback, False

    def cancel(self) -> None:
        """Cancel it: it will not be called, and holds no references."""
        self.off, self.callback = True, _nothing


class Loop:
    """Callbacks by fd, each called with its epoll events, and timers."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], object]] = {}
        self.giving_way: set[int] = set()
        self.later: dict[int, int] = {}  # their events, first come, first served
        self.timers: list[tuple[float, int, Timer]] = []
        self.serial = itertools.count()
        self.purge_at = FEW_TIMERS
        self.status: int | None = None

    def add(self, fd: int, handler: Callable[[int], object], events: int = select.EPOLLIN) -> None:
        """Call HANDLER with the events of FD. Raises OSError."""
        self.epoll.register(fd, events)
        self.handlers[fd] = handler

    def remove(self, fd: int) -> None:
        """Stop watching FD; call before it is closed."""
        if self.handlers.pop(fd, None):
            self.epoll.unregister(fd)
            self.give_way(fd, False)
            self.later.pop(fd, None)

    def give_way(self, fd: int, does: bool) -> None:
        """Whether FD gives way: a turn handles one of these, after all others."""
        (self.giving_way.add if does else self.giving_way.discard)(fd)

    def after(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call CALLBACK once, SECONDS from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self.timers, (timer.due, next(self.serial), timer))
        if len(self.timers) > self.purge_at:  # most timers are cancelled long before they are due
            self.timers = [row for row in self.timers if not row[2].off]
            heapq.heapify(self.timers)
            self.purge_at = max(FEW_TIMERS, 2 * len(self.timers))
        return timer

    def run(self) -> int:
        """Run until the status is set; return it."""
        while self.status is None:
            self.turn()
        return self.status

    def turn(self) -> None:
        """Wait for events and timers, and handle them."""
        for fd, events in self.epoll.poll(self._patience(), MOST_EVENTS):
            if fd in self.giving_way:
                self.later[fd] = events
            else:
                self._handle(fd, events)
        if self.later:
            fd = next(iter(self.later))
            self._handle(fd, self.later.pop(fd))
        while self.timers and self.timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self.timers)[2]
            if not timer.off:
                timer.callback()

    def is_ready(self) -> bool:
        """Whether events are waiting."""
        poll = select.poll()
        poll.register(self.epoll, select.POLLIN)
        return bool(poll.poll(0))

    def _handle(self, fd: int, events: int) -> None:
        handler = self.handlers.get(fd)
        if handler:  # an earlier handler may have removed it
            handler(events)

    def _patience(self) -> float:
        if self.later:
            return 0
        while self.timers and self.timers[0][2].off:
            heapq.heappop(self.timers)
        return max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else -1

    def close(self) -> None:
        """Close the epoll fd."""
        self.epoll.close()
