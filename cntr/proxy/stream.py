"""Two stream sockets joined in both directions until both are done."""

from __future__ import annotations

import _socket as socket
import errno
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.proxy.loop import Loop

CHUNK = 1 << 20  # bytes read at once: fewer cost more wake-ups, more would not fit into the processor's cache
BULK = 1 << 16  # bytes; whoever sends more at once gives way to those who send less
TURN = 4  # large reads in a turn: returning to the loop for each costs a twentieth of the speed
MOST_BUFFERS = 64
SMALL_CHUNK = 1 << 14  # bytes for a connection that finds all buffers in use
IN, OUT, ERROR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR
_LINGER_NONE = (1).to_bytes(4, sys.byteorder) + bytes(4)  # struct linger: on, 0 s


class Buffers:
    """A pool of buffers. A connection has one only while it holds bytes, so an idle connection costs its two fds only."""

    __slots__ = ("idle", "made")

    def __init__(self) -> None:
        self.idle: list[memoryview] = []
        self.made = 0

    def take(self) -> memoryview:
        """Return the buffer that was used last, which may still be in the processor's cache; a
        small new one if MOST_BUFFERS are in use.
        """
        if self.idle:
            return self.idle.pop()
        if self.made >= MOST_BUFFERS:
            return memoryview(bytearray(SMALL_CHUNK))
        self.made += 1
        return memoryview(bytearray(CHUNK))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        if len(buffer) == CHUNK:
            self.idle.append(buffer)


class Flow:
    """One direction. It reads only when it holds nothing, so a slow reader blocks only its own
    writer.

    data: what is held, in a buffer; bulk: the last read was large; ended: the source is at its end;
    broken: by an error; cut: the source was reset, so its end is not a regular one; lost: errno, if
    the sink accepts no more data; done: nothing will be moved any more.
    """

    __slots__ = ("broken", "buffer", "buffers", "bulk", "cut", "data", "done", "ended", "lost", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket, buffers: Buffers) -> None:
        self.source, self.sink, self.buffers = source, sink, buffers
        self.buffer: memoryview | None = None
        self.data = memoryview(b"")
        self.bulk = self.ended = self.broken = self.cut = self.done = False
        self.lost = 0

    def take(self) -> bool:
        """Read into a buffer; False at the end. Raises OSError."""
        self.buffer = self.buffers.take()
        try:
            self.data = self.buffer[: self.source.recv_into(self.buffer)]
        finally:
            if not self.data:
                self.drop()
        return len(self.data) > 0

    def give(self) -> None:
        """Write what is held, or a part of it. Raises OSError."""
        self.data = self.data[self.sink.send(self.data) :]
        if not self.data:
            self.drop()

    def pump(self) -> None:
        """Write what is held, then read once and write that; up to TURN times if reads are large.
        Then the others have their turn.
        """
        self._give()
        for _ in range(TURN):
            if self.data or self.ended or self.done:
                return
            try:
                self.ended = not self.take()
                self.broken = self.ended and self.cut
                self.bulk = len(self.data) > BULK
            except BlockingIOError:
                return
            except OSError:
                self.ended = self.broken = True
            self._give()
            if not self.bulk:
                return

    def _give(self) -> None:
        if self.data:
            try:
                self.give()
            except BlockingIOError:
                pass
            except OSError as error:  # EPIPE, ECONNRESET
                self.lose(error.errno or errno.EIO)
        if self.ended and not self.data and not self.done:
            self.finish()

    def lose(self, number: int) -> None:
        """End this direction, as the reader is gone."""
        self.lost = number
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
        if self.buffer:
            self.buffers.give(self.buffer)
        self.buffer, self.data = None, memoryview(b"")


class Connection:
    """Two flows over two sockets. If one end is reset, the other one is reset too: a broken connection never looks like
    a regular end.
    """

    __slots__ = ("bulk", "ends", "flows", "loop", "over", "wanted")

    def __init__(
        self,
        loop: Loop,
        near: socket.socket,
        far: socket.socket,
        flows: tuple[Flow, Flow],
        over: Callable[[Connection], object],
    ) -> None:
        """flows: from near to far, and back; over: called at the end. Raises OSError."""
        self.loop, self.ends, self.flows, self.over = loop, (near, far), flows, over
        self.wanted, self.bulk = [IN, IN], False
        try:
            for end, ready in ((near, self._near), (far, self._far)):
                end.setblocking(False)
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                loop.add(end.fileno(), ready, IN)
        except OSError:
            loop.remove(near.fileno())
            raise

    def _near(self, events: int) -> None:
        self._ready(self.flows[0], self.flows[1], events)

    def _far(self, events: int) -> None:
        self._ready(self.flows[1], self.flows[0], events)

    def _ready(self, out: Flow, back: Flow, events: int) -> None:
        """One end became readable (out) or writable (back); the calls that follow report errors and hang-ups."""
        if events & ~OUT:
            out.pump()
        if events & ~IN:
            back.pump()
        if events & ERROR and out.done and not back.done:
            back.lose(errno.EPIPE)
        if back.lost == errno.ECONNRESET:  # it was reported once, to the writer: the reader would see a regular end
            out.cut = True
        self._settle()

    def _settle(self) -> None:
        """Close if all is done; otherwise wait for exactly what the flows need."""
        near, far = self.flows
        if near.broken or far.broken or (near.done and far.done):
            self.close(reset=any(flow.broken or flow.lost != 0 for flow in self.flows))
            return
        if self.bulk != (near.bulk or far.bulk):
            self.bulk = not self.bulk
            for end in self.ends:
                self.loop.give_way(end.fileno(), self.bulk)
        for number, (out, back) in enumerate(((near, far), (far, near))):
            wanted = (0 if out.data or out.done else IN) | (OUT if back.data else 0)
            if wanted != self.wanted[number]:
                self.wanted[number] = wanted
                # Errors and hang-ups are always reported: edge-triggered, thus only once, if
                # nothing can be done about them.
                self.loop.epoll.modify(self.ends[number].fileno(), wanted or select.EPOLLET)

    def close(self, *, reset: bool = False) -> None:
        """Close both ends, with a reset unless the end was regular: the kernel still delivers what
        was sent to such an end.
        """
        for flow in self.flows:
            if not flow.done:
                flow.broken = True
                flow.finish()
            self.loop.remove(flow.sink.fileno())
            close(flow.sink, reset=reset and (flow.broken or flow.lost != 0))
        self.over(self)


def close(end: socket.socket, *, reset: bool = False) -> None:
    """Close a socket. reset: with a reset, so that its peer sees an error (tcp(7): RST), if its type supports that."""
    if reset and end.family != socket.AF_UNIX:
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        except OSError:
            pass
    end.close()
