"""Unix sockets joined with what goes beside their bytes: open files (SCM_RIGHTS), which Wayland, D-Bus and X11 clients pass."""

from __future__ import annotations

import _socket as socket
import errno
import os

from cntr.forward.stream import Flow, Pipes
from cntr.linux import sockets

SIZE = 1 << 16
MOST_FDS = 253  # SCM_MAX_FD
NO_PIPES = Pipes()


class Opening:
    """What is said first in one direction, looked at before it goes on. ``done``: the rest passes untouched."""

    done = False

    def feed(self, data: bytes) -> bytes:
        """What may go on by now. Raises ValueError: nothing more."""
        raise NotImplementedError


class Passage(Flow):
    """One direction. The fds of a message go with its first byte; none is looked at."""

    __slots__ = ("fds", "opening")

    def __init__(self, source: socket.socket, sink: socket.socket, opening: Opening | None = None) -> None:
        super().__init__(source, sink, NO_PIPES)
        self.opening = opening
        self.fds: list[int] = []

    def take(self) -> bool:
        """One message, or a part of it. Raises OSError."""
        data, fds = sockets.receive(self.source, SIZE, MOST_FDS)
        more = bool(data)
        self.fds += fds
        if self.opening:
            try:
                data = self.opening.feed(data)
                if len(self.fds) > MOST_FDS:
                    raise ValueError
            except ValueError:
                self.drop()
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO)) from None
            if self.opening.done:
                self.opening = None
        self.data, self.held = memoryview(data), len(data)
        return more

    def give(self) -> None:
        """Raises OSError."""
        if self.fds and self.sink.family == socket.AF_UNIX:
            sent = sockets.send(self.sink, self.data, self.fds)
        else:
            sent = self.sink.send(self.data)
        self._close_fds()
        self.data = self.data[sent:]
        self.held = len(self.data)

    def drop(self) -> None:
        """Hold nothing any more."""
        self._close_fds()
        self.data, self.held = memoryview(b""), 0

    def _close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
