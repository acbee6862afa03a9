"""``cntr forward TARGET - PORT``: joins stdin and stdout to a port or socket of the container, for ssh's ProxyCommand."""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import os
import select
import stat
import time

from cntr.attach.signals import END
from cntr.errors import CntrError, printable
from cntr.forward.dial import CONNECT_SECONDS, why
from cntr.forward.dialer import WantedContainer
from cntr.forward.sides import ContainerSide
from cntr.proxy.loop import Loop
from cntr.proxy.spec import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit.session import Session
    from cntr.forward.sides import Answer

SIZE = 1 << 16
PIPE_BUF = 4096  # how many bytes a pipe takes without blocking when poll(2) reports it writable (pipe(7))


def run(target: str, endpoint: Endpoint, session: Session | None = None) -> int:
    """Relay until both directions have ended; return 0. Raises CntrError, OSError."""
    if session:
        _end_in_order(session)
    loop = Loop()
    there = ContainerSide(loop, WantedContainer(target, paths=endpoint.is_file, session=session), _Events())
    try:
        there.start()
        while not there.is_up:
            loop.turn()
        far = _connect(loop, there, endpoint)
    finally:
        there.close()
        loop.close()
    try:
        Streams(far, session.limit if session else None).run()
    finally:
        far.close()
    return 0


def _end_in_order(session: Session) -> None:
    """Turn signals that end this process into CntrError, so that the session's record is completed."""

    def end(number: int, frame: object) -> None:
        session.why = "`cntr sessions end`" if number == END else f"signal {number}"
        raise CntrError(f"the session was ended: {session.why}", "", 128 + (signal.SIGHUP if number == END else number))

    for number in (signal.SIGHUP, signal.SIGTERM, END):
        signal.signal(number, end)


class _Events:
    """Ignores the callbacks: the container must be there once, and its end shows in the connection."""

    def up(self, notes: list[str]) -> None:
        """Does nothing: stderr may be a log."""

    def gone(self) -> None:
        """Does nothing."""


def _connect(loop: Loop, there: ContainerSide, endpoint: Endpoint) -> socket.socket:
    """Return the connection. Raises CntrError."""
    errors: list[int] = []
    for family, address in endpoint.addresses():
        answers: list[Answer] = []
        if family == socket.AF_UNIX and isinstance(address, str):
            there.connect_file(address, answers.append)
        else:
            there.socket(family, socket.SOCK_STREAM, answers.append)
        while not answers:
            loop.turn()
        (made,) = answers
        if isinstance(made, OSError):
            errors.append(made.errno or errno.EIO)
            continue
        assert isinstance(made, socket.socket)
        if endpoint.is_file:
            return made
        made.settimeout(CONNECT_SECONDS)
        try:
            made.connect(address)
        except OSError as error:
            made.close()
            errors.append(error.errno or errno.ETIMEDOUT)
            continue
        return made
    raise CntrError(
        f"{printable(endpoint.text(there.wanted.target))}: {why(errors[0])}",
        "is it listened at there? 127.0.0.1 and ::1 are asked unless an address is named",
    )


class Streams:
    """Relays stdin → FAR and FAR → stdout. The flags of the caller's streams are not changed: other processes share
    them.
    """

    def __init__(self, far: socket.socket, limit: float | None) -> None:
        """far: connected socket; limit: time limit in seconds."""
        self.far, self.end = far, None if limit is None else time.monotonic() + limit
        self.far.setblocking(False)
        self.to_far, self.to_us = b"", b""
        self.ended = self.shut = self.far_ended = False
        self.step = _step(1)

    def run(self) -> None:
        """Run until the far end has closed and everything is written. Raises OSError, BrokenPipeError."""
        far = self.far.fileno()
        while not (self.far_ended and not self.to_us):
            poll = select.poll()
            reading = not self.ended and not self.to_far
            wanted = (0 if self.to_us else select.POLLIN) | (select.POLLOUT if self.to_far else 0)
            if wanted:  # otherwise poll(2) would report a hang-up again and again
                poll.register(far, wanted)
            if reading:
                poll.register(0, select.POLLIN)
            if self.to_us:
                poll.register(1, select.POLLOUT)
            ready = dict(poll.poll(self._patience()))
            if 0 in ready:
                self.to_far = os.read(0, SIZE)
                self.ended = not self.to_far
            if self.to_far:
                self._send()
            if self.ended and not self.to_far and not self.shut:
                self.shut = True
                self._shut()
            if not self.to_us and far in ready and not self.far_ended:
                self._receive()
            if self.to_us and 1 in ready:
                self.to_us = self.to_us[os.write(1, self.to_us[: self.step]) :]

    def _patience(self) -> float | None:
        """Milliseconds for poll(2). Raises CntrError when the time limit is over."""
        if self.end is None:
            return None
        left = self.end - time.monotonic()
        if left <= 0:
            raise CntrError("the session was ended: its time is over", "", 128 + signal.SIGHUP)
        return left * 1000

    def _send(self) -> None:
        try:
            self.to_far = self.to_far[self.far.send(self.to_far) :]
        except BlockingIOError:
            pass
        except OSError:  # it reads no more; what it has sent is still written
            self.to_far, self.ended, self.shut = b"", True, True

    def _shut(self) -> None:
        try:
            self.far.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone

    def _receive(self) -> None:
        try:
            self.to_us = self.far.recv(SIZE)
            self.far_ended = not self.to_us
        except BlockingIOError:
            pass


def _step(fd: int) -> int:
    """How many bytes can be written to FD without blocking when poll(2) reports it writable."""
    return PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) or stat.S_ISSOCK(os.fstat(fd).st_mode) else SIZE
