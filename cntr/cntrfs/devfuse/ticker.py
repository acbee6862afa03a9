"""One thread for everything that must be retried later; it also waits for the request to stop."""

from __future__ import annotations

import os
import select

from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Ticker:
    """Calls its tasks in the thread that runs it, after ``wake`` and as often as a task asks.

    A task returns the seconds until its next call; None: not before the next ``wake``.
    """

    def __init__(self) -> None:
        self._tasks: list[Callable[[], float | None]] = []
        self._is_running = False
        self._event = file_syscalls.eventfd()

    def add(self, task: Callable[[], float | None]) -> None:
        """Add a task, before the thread runs."""
        self._tasks.append(task)

    def wake(self) -> None:
        """Have the tasks called; from any thread."""
        os.write(self._event, file_syscalls.EVENT)

    def run_until_readable(self, stop_fd: int) -> None:
        """Run the tasks; returns when stop_fd is readable."""
        poll = select.poll()
        poll.register(stop_fd, select.POLLIN)
        poll.register(self._event, select.POLLIN)
        pause: float | None = None
        self._is_running = True
        while True:
            ready = poll.poll(None if pause is None else max(1.0, pause * 1000))
            for fd, _ in ready:
                if fd == stop_fd:
                    return
                os.read(self._event, 8)
            wanted = [seconds for seconds in (task() for task in self._tasks) if seconds is not None]
            pause = min(wanted) if wanted else None

    def close(self) -> None:
        """Close the fd, after the last ``wake``. A thread that still polls keeps it: the process is about to end."""
        if not self._is_running:
            os.close(self._event)
