"""Whether who asks a file server and the server run on one processor: two states that last, and differ by several times.

Looked at from outside, every few milliseconds: proc_pid_stat(5) tells which processor a thread ran on last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_PAUSE = 0.004  # seconds
_PROCESSOR = 36  # in what follows the name in parentheses


class Share:
    """seen: how often the server had worked when it was looked at; crossed: how often on another processor than its client."""

    def __init__(self) -> None:
        self.seen = self.crossed = 0

    @contextlib.contextmanager
    def watched(self, server: int) -> Iterator[None]:
        """While the block runs. server: the pid that serves; the client is this process, or what it has started inside."""
        reader, writer = os.pipe()
        client = os.getpid()
        others = set(_children(client))
        pid = os.fork()
        if not pid:
            _look(server, client, others, writer)
        os.close(writer)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGTERM)
            with open(reader, "rb") as found:
                numbers = found.read().split()
            os.waitpid(pid, 0)
            if len(numbers) == 2:
                self.seen += int(numbers[0])
                self.crossed += int(numbers[1])


def _look(server: int, client: int, others: set[int], writer: int) -> None:
    """The process that looks; never returns."""
    seen = crossed = turns = 0
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    try:
        while not ended:
            time.sleep(_PAUSE)
            with contextlib.suppress(OSError, IndexError, ValueError):
                now = int(Path(f"/proc/{server}/schedstat").read_text().split()[2])
                if now == turns:
                    continue
                turns = now
                started = [child for child in _children(client) if child not in others and child != os.getpid()]
                seen += 1
                crossed += _processor(server) != _processor(started[0] if started else client)
        os.write(writer, b"%d %d" % (seen, crossed))
    finally:
        os._exit(0)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _processor(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_PROCESSOR])
