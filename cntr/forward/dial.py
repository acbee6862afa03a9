"""Connects the other side of an accepted connection: tries each address in turn, and retries while a container starts."""

from __future__ import annotations

import _socket as socket
import errno
import os
import select

from cntr.forward.sides import Gone
from cntr.proxy import stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Union

    from cntr.forward.sides import Answer, ContainerSide, HostSide
    from cntr.proxy.loop import Loop, Timer
    from cntr.proxy.spec import Forward

    Side = Union[HostSide, ContainerSide]

CONNECT_SECONDS = 10.0
AWAY_SECONDS = 60.0  # how long a connection waits for a container that is being restarted
STARTING_SECONDS = 10.0  # how long a container that has just started may not listen yet
AGAIN_SECONDS = 0.05
# errors of connect(2) while a container starts: nothing listens yet, the socket does not exist yet, the network is not
# up yet
NOT_YET = (errno.ECONNREFUSED, errno.ENOENT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


class Dial:
    """One attempt to connect. It ends in a stream.Connection, or with NEAR reset."""

    __slots__ = ("error", "far", "listener", "near", "number", "patience", "timer")

    def __init__(self, listener: Listener, near: socket.socket) -> None:
        """near: accepted from LISTENER; over: called at the end."""
        self.listener, self.near, self.number, self.error = listener, near, 0, 0
        self.far: socket.socket | None = None
        self.timer: Timer | None = None
        self.patience = listener.loop.after(AWAY_SECONDS, self._too_long)
        listener.dials.add(self)
        self.start()

    def start(self) -> None:
        """Try the first address; if the container is away, once it is back."""
        self.number = self.error = 0
        if self.listener.far_side.is_up:
            self._attempt()
        else:
            self.listener.away[self] = None

    def _attempt(self) -> None:
        side, (family, address) = self.listener.far_side, self.listener.addresses[self.number]
        if self._is_connected_there():
            assert not isinstance(address, tuple)
            side.connect_file(address, self._made)
        else:
            side.socket(family, socket.SOCK_STREAM, self._made)

    def _made(self, answer: Answer) -> None:
        """Handle the dialer's answer: a socket, already connected if it has a path, or an error."""
        if self.near.fileno() < 0:
            if isinstance(answer, socket.socket):
                answer.close()
        elif isinstance(answer, Gone):
            self.start()
        elif not isinstance(answer, socket.socket):
            self._failed(answer.errno if isinstance(answer, OSError) else None)
        else:
            self.far = answer
            if self._is_connected_there():
                self._connected()
            else:
                self._connect()

    def _is_connected_there(self) -> bool:
        """Whether the far side returns a socket that is connected."""
        family, address = self.listener.addresses[self.number]
        return family == socket.AF_UNIX and (isinstance(address, str) or self.listener.far_side.connects_itself)

    def _connect(self) -> None:
        assert self.far
        loop, number = self.listener.loop, self.far.connect_ex(self.listener.addresses[self.number][1])
        if not number:
            self._connected()
        elif number == errno.EINPROGRESS:
            try:
                loop.add(self.far.fileno(), self._answered, select.EPOLLOUT)
            except OSError as error:  # epoll(7): ENOMEM, max_user_watches
                self._failed(error.errno)
                return
            self.timer = loop.after(CONNECT_SECONDS, self._silent)
        else:
            self._failed(number)

    def _answered(self, events: int) -> None:
        assert self.far
        number = self.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            number or self.far.getpeername()
        except OSError:  # the event belonged to an earlier socket with this fd number
            return
        self._stop_waiting()
        if number:
            self._failed(number)
        else:
            self._connected()

    def _silent(self) -> None:
        self._stop_waiting()
        self._failed(errno.ETIMEDOUT)

    def _stop_waiting(self) -> None:
        if self.timer and self.far:
            self.timer.cancel()
            self.timer = None
            self.listener.loop.remove(self.far.fileno())

    def _connected(self) -> None:
        far, self.far = self.far, None
        assert far
        self._leave()
        self.listener.connected(self.near, far)

    def _failed(self, number: int | None) -> None:
        if self.far:
            self.far.close()
            self.far = None
        listener, self.error = self.listener, self.error or number or errno.EIO
        if number == errno.EAGAIN:  # unix(7): the backlog is full
            self.timer = listener.loop.after(AGAIN_SECONDS, self._again)
        elif self.number + 1 < len(listener.addresses) and number != errno.ETIMEDOUT:
            self.number += 1
            self._attempt()
        elif listener.far_side.is_young and self.error in NOT_YET:
            self.timer = listener.loop.after(AGAIN_SECONDS, self._again)
        else:
            self._leave()
            listener.refused(self.near, self.error)

    def _again(self) -> None:
        self.timer = None
        self.start()

    def _too_long(self) -> None:
        self.cancel()
        self.listener.refused(self.near, errno.ETIMEDOUT)

    def _leave(self) -> None:
        self.patience.cancel()
        self.listener.dials.discard(self)
        self.listener.away.pop(self, None)

    def cancel(self) -> None:
        """Give up silently; NEAR stays open."""
        self._stop_waiting()
        if self.timer:
            self.timer.cancel()
        self._leave()
        if self.far:
            self.far.close()
            self.far = None


class Quota:
    """The limit on simultaneous connections. A quarter is split evenly among the forwards as their own; the rest is
    shared.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.listeners: list[Listener] = []

    def may(self, listener: Listener) -> bool:
        """Whether LISTENER may accept one more."""
        own = self.total // 4 // len(self.listeners)
        return listener.count() < own or sum(max(own, one.count()) for one in self.listeners) < self.total

    def left(self) -> None:
        """A connection has ended: listeners that had to wait accept again."""
        for listener in self.listeners:
            listener.listen()


class Listener:
    """The listening side of one forward: accepts, dials, counts. Connections beyond the quota wait in the kernel's
    backlog.
    """

    def __init__(
        self, loop: Loop, buffers: stream.Buffers, made: socket.socket, forward: Forward, far_side: Side, quota: Quota
    ) -> None:
        self.loop, self.buffers, self.made, self.forward = loop, buffers, made, forward
        self.far_side, self.quota = far_side, quota
        quota.listeners.append(self)
        self.addresses = forward.connect.addresses()
        self.dials: set[Dial] = set()
        self.away: dict[Dial, None] = {}
        self.connections: set[stream.Connection] = set()
        self.said_refused = self.listens = False
        self.tell_refused: Callable[[Listener, int], object] = lambda listener, number: None
        self.listen()

    def count(self) -> int:
        """Number of connections, established or being dialled."""
        return len(self.connections) + len(self.dials)

    def listen(self) -> None:
        """Start accepting if not already doing so."""
        if not self.listens and self.made.fileno() >= 0:
            self.listens = True
            self.loop.add(self.made.fileno(), self._accept)

    def _pause(self) -> None:
        if self.listens:
            self.listens = False
            self.loop.remove(self.made.fileno())

    def _accept(self, events: int) -> None:
        for _ in range(64):
            if not self.quota.may(self):
                self._pause()
                return
            try:
                fd, _ = self.made._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # EMFILE, ENOMEM: leave it in the backlog
                self._pause()
                self.loop.after(0.2, self.listen)
                return
            Dial(self, socket.socket(fileno=fd))

    def back(self) -> None:
        """The container is back: continue dials that waited for it."""
        waiting, self.away = self.away, {}
        for dial in waiting:
            dial.start()

    def connected(self, near: socket.socket, far: socket.socket) -> None:
        """Join the two sockets."""
        self.said_refused = False
        flows = stream.Flow(near, far, self.buffers), stream.Flow(far, near, self.buffers)
        try:
            connection = stream.Connection(self.loop, near, far, flows, self._over)
        except OSError:
            for end in (near, far):
                stream.close(end, reset=True)
            return
        self.connections.add(connection)

    def _over(self, connection: stream.Connection) -> None:
        self.connections.discard(connection)
        self.quota.left()

    def refused(self, near: socket.socket, number: int) -> None:
        """Nobody listens: reset the client's connection, and tell the user once."""
        stream.close(near, reset=True)
        self.quota.left()
        if not self.said_refused:
            self.said_refused = True
            self.tell_refused(self, number)

    def is_busy(self) -> bool:
        """Whether data that was sent has not arrived yet."""
        return any(
            not flow.done and (flow.data or flow.ended) for one in self.connections for flow in one.flows
        ) or bool(self.dials)

    def close(self) -> None:
        """Close everything. Connections are cut off, with an error at both ends."""
        self._pause()
        self.quota.listeners.remove(self)
        self.made.close()
        for dial in list(self.dials):
            dial.cancel()
            stream.close(dial.near, reset=True)
        for connection in list(self.connections):
            connection.close(reset=True)


def why(number: int) -> str:
    """An errno of connect(2) in words."""
    return os.strerror(number).lower()
