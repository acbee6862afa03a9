"""Unix sockets joined with their ancillary data: open files (SCM_RIGHTS), which Wayland, D-Bus and X11 clients pass."""

from __future__ import annotations

import _socket as socket
import errno
import os

from cntr.linux import sockets
from cntr.proxy.stream import Buffers, Flow

SIZE = 1 << 16
MOST_FDS = 253  # SCM_MAX_FD
NO_BUFFERS = Buffers()


class Opening:
    """The start of one direction, inspected before it is passed on. ``done``: the rest passes unchanged."""

    done = False

    def feed(self, data: bytes) -> bytes:
        """Return what may be passed on so far. Raises ValueError to cut the connection."""
        raise NotImplementedError


class Passage(Flow):
    """One direction. A message's fds are sent with its first byte, without being inspected."""

    __slots__ = ("fds", "opening")

    def __init__(self, source: socket.socket, sink: socket.socket, opening: Opening | None = None) -> None:
        super().__init__(source, sink, NO_BUFFERS)
        self.opening = opening
        self.fds: list[int] = []

    def take(self) -> bool:
        """Read one message or a part of it; False at the end. Raises OSError."""
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
        self.data = memoryview(data)
        return more

    def give(self) -> None:
        """Write what is held, or a part of it. Raises OSError."""
        if self.fds and self.sink.family == socket.AF_UNIX:
            sent = sockets.send(self.sink, self.data, self.fds)
        else:
            sent = self.sink.send(self.data)
        self._close_fds()
        self.data = self.data[sent:]

    def drop(self) -> None:
        """Drop what is held, and close its fds."""
        self._close_fds()
        self.data = memoryview(b"")

    def _close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
