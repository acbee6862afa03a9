"""An epoll(7) loop: ready fds, timers, and callbacks for the next turn."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
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
    """Callbacks by fd, each called with its epoll events; timers; and callbacks for the next turn."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], object]] = {}
        self.timers: list[tuple[float, int, Timer]] = []
        self.waiting: deque[Callable[[], object]] = deque()
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

    def after(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call CALLBACK once, SECONDS from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self.timers, (timer.due, next(self.serial), timer))
        if len(self.timers) > self.purge_at:  # most timers are cancelled long before they are due
            self.timers = [row for row in self.timers if not row[2].off]
            heapq.heapify(self.timers)
            self.purge_at = max(FEW_TIMERS, 2 * len(self.timers))
        return timer

    def soon(self, callback: Callable[[], object]) -> None:
        """Call CALLBACK in the next turn, so that other callbacks run first."""
        self.waiting.append(callback)

    def run(self) -> int:
        """Run until the status is set; return it."""
        while self.status is None:
            self.turn()
        return self.status

    def turn(self) -> None:
        """Wait for events and timers, and handle them."""
        for fd, events in self.epoll.poll(self._patience(), MOST_EVENTS):
            handler = self.handlers.get(fd)
            if handler:  # an earlier handler may have removed it
                handler(events)
        for _ in range(len(self.waiting)):
            self.waiting.popleft()()
        while self.timers and self.timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self.timers)[2]
            if not timer.off:
                timer.callback()

    def _patience(self) -> float:
        if self.waiting:
            return 0
        while self.timers and self.timers[0][2].off:
            heapq.heappop(self.timers)
        return max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else -1

    def close(self) -> None:
        """Close the epoll fd."""
        self.epoll.close()
