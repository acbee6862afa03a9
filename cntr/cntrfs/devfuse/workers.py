"""Requests that may wait for long run in a thread of their own, and answer from there.

They use nothing of the core but a fd: it is opened before, and the kernel sends no RELEASE for it while they run.
"""

from __future__ import annotations

import os
import threading
from _queue import SimpleQueue  # the C half of queue: the rest of it is for others
from typing import TYPE_CHECKING

from cntr.cntrfs.core import errno_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.devfuse.request import Connection
    from cntr.cntrfs.heartbeat import Heartbeat

_POOL = 2


class Workers:
    """A small pool for what the disk delays; started when first needed."""

    def __init__(self, connection: Connection, heartbeat: Heartbeat) -> None:
        """connection: where they answer."""
        self.connection = connection
        self.heartbeat = heartbeat
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, work: Callable[[], object]) -> None:
        """Run WORK, of which nobody waits for the result."""
        if len(self._threads) < _POOL:
            thread = threading.Thread(target=self._run, name=f"worker-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(work)

    def submit(self, unique: int, work: Callable[[], bytes | None]) -> None:
        """Run WORK and answer the request UNIQUE with what it returns, or with its error."""

        def answer() -> None:
            try:
                payload = work()
            except Exception as error:  # noqa: BLE001  every mistake becomes an answer
                self.connection.fail(unique, errno_of(error))
            else:
                self.connection.answer(unique, payload)
            finally:
                self.heartbeat.park(-1)

        self.heartbeat.park(1)
        self.run(answer)

    def _run(self) -> None:
        while True:
            self._queue.get()()


def sync(fd: int, data_only: bool) -> bytes | None:
    """fsync(2) or fdatasync(2)."""
    (os.fdatasync if data_only else os.fsync)(fd)
    return None
