"""The two sides of a forward: making sockets on this machine, and in the container."""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import os
import select
from collections import deque

from cntr.audit.behind_sudo import CallerOpener
from cntr.engines import Container
from cntr.errors import CntrError
from cntr.forward import dialer, listening
from cntr.linux import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, Union

    from cntr.proxy.loop import Loop, Timer

    Answer = Union[socket.socket, OSError, str]
    Done = Callable[[Answer], object]

    class ContainerEvents(Protocol):
        """Callbacks about the container."""

        def up(self, notes: list[str]) -> object:
            """It was found."""

        def gone(self) -> object:
            """It has ended."""


AT_ONCE = 64  # unanswered requests to the child: they fit in the socket buffer
SPARE = 16  # TCP sockets of the container kept ready, so that a connection need not wait for one
ANSWER_SECONDS = 10.0  # a path in the container may lead to a file system that never answers
PAUSE = 0.5  # before a failed child is replaced
_MODE = 0o600


class Gone(OSError):
    """The container is not running at the moment."""


class HostSide:
    """This machine's side. Its Unix sockets are reached, made and removed with the rights of the user behind sudo.

    connects_itself: to abstract names too, since a listener is told who connects (SO_PEERCRED, unix(7)).
    """

    is_up, is_young, connects_itself = True, False, True

    def __init__(self) -> None:
        self.made: list[tuple[int, str, int]] = []
        self.rights = CallerOpener()

    def socket(self, family: int, kind: int, done: Done) -> None:
        """Pass a new socket, or the error, to DONE."""
        try:
            made = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:  # EMFILE, ENFILE, ENOBUFS
            done(error)
            return
        done(made)

    def connect_file(self, path: str | bytes, done: Done) -> None:
        """Pass a socket connected to PATH, or the error, to DONE."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with self.rights:
                made.connect(path)
        except OSError as error:
            made.close()
            done(error)
            return
        done(made)

    def bind_file(self, path: str, done: Done) -> None:
        """Pass a socket that listens at PATH, accessible to the caller only, or the error, to DONE."""
        parent, _, name = path.rpartition("/")
        try:
            with self.rights:
                directory = os.open(parent or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                made, inode = listening.bind_file(directory, name, _MODE)
            self.made.append((directory, name, inode))
        except OSError as error:
            done(error)
            return
        done(made)

    def close(self) -> None:
        """Remove the sockets' names."""
        for directory, name, inode in self.made:
            with self.rights:
                listening.remove(directory, name, inode)
            os.close(directory)
        self.made = []


class ContainerSide:
    """The container's side, through a child (``dialer``), which is replaced when it ends."""

    connects_itself = False

    def __init__(self, loop: Loop, wanted: dialer.WantedContainer, told: ContainerEvents) -> None:
        """told: gets the callbacks. Nothing is started yet."""
        self.loop, self.wanted, self.told = loop, wanted, told
        self.label, self.pid, self.host_network, self.failed = wanted.target, 0, False, ""
        self.is_up = self.is_young = self.closing = self.gave_up = False
        self.control: socket.socket | None = None
        self.child = 0
        self.asked: deque[Done] = deque()
        self.unsent: deque[tuple[bytes, Done]] = deque()
        self.spare: list[socket.socket] = []
        self.on_the_way = 0
        self.deadline: Timer | None = None
        self.stuck: list[int] = []

    def start(self) -> None:
        """Start looking for the container. Raises OSError."""
        if self.closing:
            return
        self.stuck = [pid for pid in self.stuck if not os.waitpid(pid, os.WNOHANG)[0]]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.child = os.fork()
        if self.child == 0:
            dialer.run(self.wanted, theirs)
        theirs.close()
        ours.setblocking(False)
        self.control = ours
        self.loop.add(ours.fileno(), self._ready)

    # --- requests ---

    def socket(self, family: int, kind: int, done: Done) -> None:
        """Pass a new socket of the container's network namespace, or Gone, to DONE."""
        if (family, kind) != (socket.AF_INET, socket.SOCK_STREAM):
            self._ask(done, "socket", str(int(family)), str(int(kind)))
            return
        if self.spare:
            done(self.spare.pop())
        else:
            self._ask(done, "socket", str(int(family)), str(int(kind)))
        self._stock()

    def connect_file(self, path: str | bytes, done: Done) -> None:
        """Pass a socket connected to PATH in the container, or the error, to DONE."""
        assert isinstance(path, str)
        self._ask(done, "connect", path)

    def bind_file(self, path: str, done: Done) -> None:
        """Pass a socket that listens at PATH in the container, or the error, to DONE."""
        self._ask(done, "bind", path)

    def listeners(self, done: Callable[[list[str]], object]) -> None:
        """Pass what listens in the container, as ``listening.table`` returns it, to DONE."""
        self._ask(lambda answer: done(answer.split("\n") if isinstance(answer, str) else []), "table")

    def _stock(self) -> None:
        """Request sockets while fewer than SPARE are ready or requested."""
        while self.is_up and len(self.spare) + self.on_the_way < SPARE and len(self.asked) < AT_ONCE:
            self.on_the_way += 1
            self._ask(self._spare, "socket", str(int(socket.AF_INET)), str(int(socket.SOCK_STREAM)))

    def _spare(self, made: Answer) -> None:
        self.on_the_way -= 1
        if isinstance(made, socket.socket):
            self.spare.append(made)

    def _ask(self, done: Done, *words: str) -> None:
        if not self.is_up:
            done(Gone(errno.ENOTCONN, "the container is not there"))
            return
        self.unsent.append(("\0".join(words).encode(errors="surrogateescape"), done))
        self._send()

    def _send(self) -> None:
        while self.unsent and len(self.asked) < AT_ONCE and self.control:
            data, done = self.unsent.popleft()
            try:
                self.control.send(data)
            except OSError:  # the child has ended: noticed when its socket is read
                pass
            self.asked.append(done)
            if self.deadline is None:
                self.deadline = self.loop.after(ANSWER_SECONDS, self._give_up)

    # --- answers ---

    def _ready(self, events: int) -> None:
        while self.control:
            try:
                data, fds = sockets.receive(self.control, dialer.PACKET, 1)
            except BlockingIOError:
                return
            except OSError as error:
                no_room = error.errno == errno.EMSGSIZE  # unix(7): no fd is free for the socket
                data, fds = b"%d" % errno.EMFILE if no_room else b"", []
            if not data:
                self._end()
                return
            if not self.is_up:
                self._first_word(os.fsdecode(data).split("\0"))
                continue
            self._answered(data, fds)

    def _answered(self, data: bytes, fds: list[int]) -> None:
        done = self.asked.popleft()
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.after(ANSWER_SECONDS, self._give_up) if self.asked else None
        if fds:
            done(socket.socket(fileno=fds[0]))
        elif data.isdigit():
            done(OSError(int(data), os.strerror(int(data))))
        else:
            done(data.decode())
        self._send()

    def _first_word(self, words: list[str]) -> None:
        kind, *rest = words
        if kind == "error":
            self.failed = rest[0]
            if self.wanted.engine in ("", "pid"):  # a pid is not looked up again
                raise CntrError(rest[0], rest[1], int(rest[2]))
            return
        if kind == "begin":
            self._begin(rest)
            return
        self.wanted.engine, self.wanted.owner = rest[0], int(rest[1])
        if self.gave_up and self.pid != int(rest[2]):  # the container ended while its child did not answer
            self.told.gone()
        self.gave_up = False
        self.pid, self.label, self.host_network = int(rest[2]), rest[3], rest[4] == "host"
        self.is_up, self.failed = True, ""
        self._stock()
        self.told.up(rest[5:])

    def _begin(self, words: list[str]) -> None:
        """The child is about to enter a container: check the policy and write the record, the first time only. Raises
        CntrError.
        """
        session, (engine, name, id, image, digest, pid, owner) = self.wanted.session, words
        assert session
        assert self.control
        container = Container(engine, name, int(pid), id=id, image=image, owner=int(owner))
        container.digest = digest
        if not self.wanted.engine:
            session.begin(container)
            session.announce()
        else:
            try:
                session.check_target(container)
            except CntrError as error:
                self.failed = error.message
                os.kill(self.child, signal.SIGKILL)
                return
        self.control.send(dialer.GO)

    def _give_up(self) -> None:
        """The child does not answer: kill and replace it."""
        self.deadline = None
        os.kill(self.child, signal.SIGKILL)
        self._end(stuck=True)

    def _end(self, *, stuck: bool = False) -> None:
        """The child has ended, usually because the container has."""
        assert self.control
        self.loop.remove(self.control.fileno())
        self.control.close()
        self.control = None
        was_up, self.is_up = self.is_up, False
        if stuck:
            self.stuck.append(self.child)
            self.gave_up = True
        else:
            os.waitpid(self.child, 0)
        self.child = 0
        for made in self.spare:
            made.close()
        self.spare, self.on_the_way = [], 0
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
        waiting = [*self.asked, *(done for _, done in self.unsent)]
        self.asked.clear()
        self.unsent.clear()
        error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) if stuck else Gone(errno.ENOTCONN, "")
        if was_up and not stuck:
            self.told.gone()
        for done in waiting:
            done(error)
        if was_up and not stuck:
            self.start()
        else:
            self.loop.after(PAUSE, self.start)

    def close(self) -> None:
        """End the child, which removes the names it has made."""
        self.closing = True
        for made in self.spare:
            made.close()
        self.spare = []
        if self.control:
            self.loop.remove(self.control.fileno())
            self.control.close()
            self.control = None
        if not self.child:
            return
        pidfd = os.pidfd_open(self.child)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for number in (0, signal.SIGKILL):
            if number:
                os.kill(self.child, number)
            if poll.poll(1000):
                os.waitpid(self.child, 0)
                break
        os.close(pidfd)
