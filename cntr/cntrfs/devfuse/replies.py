"""Answers to the kernel, from any thread. Each is one write(2), which the kernel takes whole or not at all.

A request that came by a ring is answered by that ring (``rings``).
"""

from __future__ import annotations

import errno
import os

from cntr.cntrfs import log
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.devfuse.rings import Rings

_header = wire.OUT_HEADER.pack
_write = os.write

#: Result of a handler or a job if the request gets no answer, or gets it later.
NO_ANSWER = b"no answer"


class Replies:
    """Sends the answers of one connection."""

    def __init__(self, fuse_fd: int) -> None:
        """fuse_fd: of the connection."""
        self.fd = fuse_fd
        self.rings: Rings | None = None

    def answer(self, unique: int, payload: bytes | None) -> None:
        """Answer success, with PAYLOAD."""
        if self.rings is not None and self.rings.answer(unique, 0, payload):
            return
        data = _header(16 + len(payload), 0, unique) + payload if payload else _header(16, 0, unique)
        try:
            _write(self.fd, data)
        except OSError as error:
            self._refused(data, error)

    def fail(self, unique: int, number: int) -> None:
        """Answer failure, with an errno."""
        if self.rings is not None and self.rings.answer(unique, number, None):
            return
        data = _header(16, -number, unique)
        try:
            _write(self.fd, data)
        except OSError as error:
            self._refused(data, error)

    def flush(self) -> None:
        """Submit the answers of the calling thread to the kernel."""
        if self.rings is not None:
            self.rings.flush()

    def demand_room(self, unique: int) -> None:
        """Raise OSError (ENOLCK) if no more requests can wait."""
        if self.rings is not None and not self.rings.has_room(unique):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def _refused(self, data: bytes, error: OSError) -> None:
        # ENOENT: the request was interrupted, nobody waits. ENODEV and the like: the next read reports it.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
            log.error("the kernel refused an answer of %d bytes: %s", len(data), error)
            if error.errno == errno.EINVAL and len(data) > 16:  # otherwise the client would wait for ever
                unique = wire.OUT_HEADER.unpack_from(data)[2]
                os.write(self.fd, _header(16, -errno.EIO, unique))


class TracedReplies(Replies):
    """Replies that are traced."""

    def __init__(self, fuse_fd: int, trace: Trace) -> None:
        """trace: writes the lines."""
        super().__init__(fuse_fd)
        self.trace = trace

    def answer(self, unique: int, payload: bytes | None) -> None:
        """Answer success, with PAYLOAD."""
        self.trace.went(unique, 0, 16 + len(payload or b""))
        super().answer(unique, payload)

    def fail(self, unique: int, number: int) -> None:
        """Answer failure, with an errno."""
        self.trace.went(unique, number, 16)
        super().fail(unique, number)
