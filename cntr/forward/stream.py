"""Two stream sockets joined in both directions until both are done."""

from __future__ import annotations

import _socket as socket
import os
import sys

from cntr.forward.loop import EDGE
from cntr.linux.pipes import splice, wide_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.forward.loop import Loop

CHUNK = 1 << 20  # size of a pipe, bytes
ROUNDS = 16  # system calls for one direction before the others get their turn
IDLE_PIPES = 32
MOST_PIPES = 256  # pipes in use at once; further connections copy through a small buffer
BUFFER = 1 << 14
_LINGER_NONE = (1).to_bytes(4, sys.byteorder) + bytes(4)  # struct linger: on, 0 s


class Pipes:
    """A pool of empty pipes. A connection has a pipe only while it holds bytes, so an idle connection needs two fds
    only.
    """

    __slots__ = ("idle", "lent")

    def __init__(self) -> None:
        self.idle: list[tuple[int, int]] = []
        self.lent = 0

    def take(self) -> tuple[int, int] | None:
        """Return a pipe; None if MOST_PIPES are in use or the process has no free fds."""
        if self.lent >= MOST_PIPES:
            return None
        try:
            pipe = self.idle.pop() if self.idle else wide_pipe(CHUNK)
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give(self, pipe: tuple[int, int], *, empty: bool = True) -> None:
        """Return a pipe to the pool; close it if it is not empty."""
        self.lent -= 1
        if empty and len(self.idle) < IDLE_PIPES:
            self.idle.append(pipe)
        else:
            for fd in pipe:
                os.close(fd)

    def close(self) -> None:
        """Close all pipes of the pool."""
        while self.idle:
            for fd in self.idle.pop():
                os.close(fd)


class Flow:
    """One direction. It reads only when it holds nothing, so a slow reader blocks only its own writer.

    held: bytes in the pipe, or of data without a pipe; readable, writable: until a call returns EAGAIN (epoll is
    edge-triggered); ended: the source is at its end; broken: by an error; lost: the sink accepts no more data.
    """

    __slots__ = (
        "broken",
        "data",
        "done",
        "ended",
        "held",
        "lost",
        "pipe",
        "pipes",
        "readable",
        "sink",
        "source",
        "writable",
    )

    def __init__(self, source: socket.socket, sink: socket.socket, pipes: Pipes) -> None:
        self.source, self.sink, self.pipes = source, sink, pipes
        self.pipe: tuple[int, int] | None = None
        self.data = memoryview(b"")
        self.held = 0
        self.readable = self.writable = True
        self.ended = self.broken = self.lost = self.done = False

    def take(self) -> bool:
        """Read into the pipe or buffer; False at the end. Raises OSError."""
        self.pipe = self.pipe or self.pipes.take()
        if self.pipe:
            self.held = splice(self.source.fileno(), self.pipe[1], CHUNK)
        else:
            self.data = memoryview(self.source.recv(BUFFER))
            self.held = len(self.data)
        return self.held > 0

    def give(self) -> None:
        """Write what is held, or a part of it. Raises OSError."""
        if self.pipe:
            self.held -= splice(self.pipe[0], self.sink.fileno(), self.held)
        else:
            self.data = self.data[self.sink.send(self.data) :]
            self.held = len(self.data)

    def pump(self) -> bool:
        """Move what can be moved; return whether there is more to do at once."""
        for _ in range(ROUNDS):
            if self.held:
                if not self.writable:
                    return False
                try:
                    self.give()
                except BlockingIOError:
                    self.writable = False
                except OSError:  # EPIPE, ECONNRESET: the reader is gone
                    self.lost = True
                    self.finish()
            elif self.done:
                return False
            elif self.ended or not self.readable:
                self.rest()
                return False
            else:
                try:
                    self.ended = not self.take()
                except BlockingIOError:
                    self.readable = False
                except OSError:
                    self.ended = self.broken = True
        return True

    def rest(self) -> None:
        """Called when nothing is held: return the pipe to the pool; at the end, shut the sink down."""
        if self.pipe:
            self.pipes.give(self.pipe)
            self.pipe = None
        if self.ended:
            self.finish()

    def finish(self) -> None:
        """End this direction: discard what is held and, unless the direction is broken, shut the sink down for writing."""
        self.done = True
        self.drop()
        if not self.broken and not self.lost:
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is gone already, which its own direction reports

    def drop(self) -> None:
        """Discard what is held."""
        if self.pipe:
            self.pipes.give(self.pipe, empty=not self.held)
        self.pipe, self.held, self.data = None, 0, memoryview(b"")


class Connection:
    """Two flows over two sockets. If one end is reset, the other one is reset too: a broken connection never looks like
    a regular end.
    """

    __slots__ = ("ends", "flows", "loop", "over", "queued")

    def __init__(
        self,
        loop: Loop,
        near: socket.socket,
        far: socket.socket,
        flows: tuple[Flow, Flow],
        over: Callable[[Connection], object],
    ) -> None:
        """flows: from near to far, and back; over: called at the end. Raises OSError."""
        self.loop, self.ends, self.over, self.queued = loop, (near, far), over, False
        self.flows = flows
        for number, end in enumerate(self.ends):
            end.setblocking(False)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop.add(end.fileno(), (self._near, self._far)[number], EDGE)

    def _near(self, events: int) -> None:
        self._ready(self.flows[0], self.flows[1], events)

    def _far(self, events: int) -> None:
        self._ready(self.flows[1], self.flows[0], events)

    def _ready(self, out: Flow, back: Flow, events: int) -> None:
        """One end became readable (out) or writable (back). The following calls report errors and hang-ups."""
        if events & ~4:  # all except EPOLLOUT
            out.readable = True
        if events & ~1:  # all except EPOLLIN
            back.writable = True
        self.pump()

    def pump(self) -> None:
        """Move both directions; continue in the next turn if there is more."""
        self.queued = False
        more = [flow.pump() for flow in self.flows]
        near, far = self.flows
        if near.broken or far.broken or (near.done and far.done):
            broken = [flow for flow in self.flows if flow.broken and not flow.done]
            if not broken:
                self.close(reset=any(flow.broken or flow.lost for flow in self.flows))
                return
        if any(more) and not self.queued:
            self.queued = True
            self.loop.soon(self._again)

    def _again(self) -> None:
        if self.queued:
            self.pump()

    def close(self, *, reset: bool = False) -> None:
        """Close both ends, with a reset if one was cut off."""
        self.queued = False
        for flow in self.flows:
            if not flow.done:
                flow.broken = True
                flow.finish()
        for end in self.ends:
            self.loop.remove(end.fileno())
            close(end, reset=reset)
        self.over(self)


def close(end: socket.socket, *, reset: bool = False) -> None:
    """Close a socket. reset: with a reset, so that its peer sees an error (tcp(7): RST), if its type supports that."""
    if reset and end.family != socket.AF_UNIX:
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        except OSError:
            pass
    end.close()
