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

CHUNK = 1 << 20  # bytes of a pipe
ROUNDS = 16  # system calls for one direction before the others have their turn
IDLE_PIPES = 32
MOST_PIPES = 256  # at once; who finds none copies, by a small buffer
BUFFER = 1 << 14
_LINGER_NONE = (1).to_bytes(4, sys.byteorder) + bytes(4)  # struct linger: on, 0 s


class Pipes:
    """Empty pipes: a connection has one only while it holds bytes, so that thousands of idle ones cost two fds each."""

    __slots__ = ("idle", "lent")

    def __init__(self) -> None:
        self.idle: list[tuple[int, int]] = []
        self.lent = 0

    def take(self) -> tuple[int, int] | None:
        """One; None where MOST_PIPES are in use, or this process may open no more files."""
        if self.lent >= MOST_PIPES:
            return None
        try:
            pipe = self.idle.pop() if self.idle else wide_pipe(CHUNK)
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give(self, pipe: tuple[int, int], *, empty: bool = True) -> None:
        """It back."""
        self.lent -= 1
        if empty and len(self.idle) < IDLE_PIPES:
            self.idle.append(pipe)
        else:
            for fd in pipe:
                os.close(fd)

    def close(self) -> None:
        """All."""
        while self.idle:
            for fd in self.idle.pop():
                os.close(fd)


class Flow:
    """One direction. It reads only when it holds nothing: so a slow reader stops the writer, and nothing else.

    held: bytes in the pipe, or of data where there was no pipe;
    readable, writable: until the kernel says EAGAIN (epoll is asked for edges); ended: the source has said its last; broken: by an
    error; lost: the sink takes no more.
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
        """Hold what can be read; False at the end. Raises OSError."""
        self.pipe = self.pipe or self.pipes.take()
        if self.pipe:
            self.held = splice(self.source.fileno(), self.pipe[1], CHUNK)
        else:
            self.data = memoryview(self.source.recv(BUFFER))
            self.held = len(self.data)
        return self.held > 0

    def give(self) -> None:
        """Pass on what is held, or some of it. Raises OSError."""
        if self.pipe:
            self.held -= splice(self.pipe[0], self.sink.fileno(), self.held)
        else:
            self.data = self.data[self.sink.send(self.data) :]
            self.held = len(self.data)

    def pump(self) -> bool:
        """Move what can be moved; whether there is more to do at once."""
        for _ in range(ROUNDS):
            if self.held:
                if not self.writable:
                    return False
                try:
                    self.give()
                except BlockingIOError:
                    self.writable = False
                except OSError:  # EPIPE, ECONNRESET: nobody is there to hear it
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
        """It holds nothing: the pipe goes back; at the end the sink is told."""
        if self.pipe:
            self.pipes.give(self.pipe)
            self.pipe = None
        if self.ended:
            self.finish()

    def finish(self) -> None:
        """No more in this direction."""
        self.done = True
        self.drop()
        if not self.broken and not self.lost:
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has gone in the meantime: its own direction says so

    def drop(self) -> None:
        """Hold nothing any more."""
        if self.pipe:
            self.pipes.give(self.pipe, empty=not self.held)
        self.pipe, self.held, self.data = None, 0, memoryview(b"")


class Connection:
    """Two flows over two sockets. What was cut off at one end is cut off at the other: an end that nobody meant is never shown as one."""

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
        """One end can be read (out) or written to (back); errors and hang-ups are told by the call itself."""
        if events & ~4:  # all but EPOLLOUT
            out.readable = True
        if events & ~1:  # all but EPOLLIN
            back.writable = True
        self.pump()

    def pump(self) -> None:
        """Move both directions on; again in the next turn where there is more."""
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
        """Close both ends, with a reset where something was cut off."""
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
    """Close it; reset: so that its peer sees an error (tcp(7): RST), where its kind has that."""
    if reset and end.family != socket.AF_UNIX:
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        except OSError:
            pass
    end.close()
