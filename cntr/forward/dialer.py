"""The container side of a forward: a child that finds the container, joins its network namespace and creates sockets there.

What it makes is connected and bound by us, outside; a socket stays in the namespace it was made in (network_namespaces(7)). The child
holds one end of a socket, the container's root where paths are asked for, and no capability but those a path takes. It looks the
container up itself: so an engine that is slow holds up no connection, and a user namespace that is entered on the way to a rootless
container is entered by the child alone. It ends when the container does.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import os
import select
import time

from cntr import engines
from cntr.attach.target import Target
from cntr.errors import AmbiguousTarget, CntrError, TargetNotFound
from cntr.forward import listening
from cntr.linux import namespaces, procfs, sockets, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit.session import Session
    from cntr.engines import Container

PACKET = 1 << 16
GO = b"y"  # the answer to "begin"
CAP_DAC_OVERRIDE = 1 << 1
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0  # seconds between two searches for a container that has gone
PR_SET_PDEATHSIG_KILL = int(signal.SIGKILL)


class Wanted:
    """The container that is asked for. engine, owner: once found, it is found again only there, and as that user's; "" and -1 before."""

    __slots__ = ("engine", "owner", "paths", "session", "target")

    def __init__(self, target: str, *, paths: bool, session: Session | None = None) -> None:
        """paths: whether Unix sockets with a path in the container will be asked for; session: asked whether it may be entered."""
        self.target, self.paths, self.session, self.engine, self.owner = target, paths, session, "", -1


def run(wanted: Wanted, control: socket.socket) -> None:
    """Be the child; never returns."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, PR_SET_PDEATHSIG_KILL)
        syscalls.set_process_name("cntr-forward")
        fd = os.dup2(control.detach(), 3)
        syscalls.close_range(4, 0)
        control = socket.socket(fileno=fd)
        os.setsid()  # the terminal's signals are for whoever watches it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            target, notes = _find(wanted, control)
            Service(target, control, wanted.paths).run(notes)
        except CntrError as error:
            _tell(control, "error", error.message, error.hint, str(error.exit_code))
        except OSError as error:
            text = f"{error.strerror} {error.filename or ''}".rstrip()
            _tell(control, "error", f"{wanted.target}: {text}", "`cntr doctor` says what is missing here", "125")
    finally:
        os._exit(0)


def _find(wanted: Wanted, control: socket.socket) -> tuple[Target, list[str]]:
    """The container; one that was there before is waited for. Raises CntrError, OSError."""
    pause = FIRST_PAUSE
    while True:
        try:
            container = engines.resolve(wanted.target)
            if not wanted.engine or (container.engine, container.owner) == (wanted.engine, wanted.owner):
                engines.verify(container, runs_its_own=True)
                notes = engines.notes(container)  # while the caller's ids are the host's
                if wanted.session:
                    _ask(container, control)
                return Target(container), notes
        except (TargetNotFound, AmbiguousTarget, FileNotFoundError, ProcessLookupError):
            if wanted.engine in ("", "pid"):
                raise
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def _ask(container: Container, control: socket.socket) -> None:
    """Have the parent, who writes the session's records, look whether it may be entered; ends where it may not."""
    found = (container.engine, container.name, container.id, container.image, container.digest)
    _tell(control, "begin", *found, str(container.pid), str(container.owner))
    if control.recv(1) != GO:
        os._exit(0)


def _tell(control: socket.socket, *words: str) -> None:
    try:
        control.send("\0".join(words).encode(errors="surrogateescape"))
    except OSError:
        pass  # nobody listens any more


class Service:
    """The child in the container's network namespace, answering one question after the other."""

    def __init__(self, target: Target, control: socket.socket, paths: bool) -> None:
        """Enter, and give up what is not needed. Raises CntrError, OSError."""
        self.control, self.label, self.pid, self.pidfd = control, target.label, target.pid, target.pidfd
        self.container, self.host_network = target.container, "net" not in target.namespaces
        namespaces.join(target.namespaces, "net")
        self.root_fd = -1
        if paths:
            self.root_fd = os.dup(target.root_fd)
            os.set_inheritable(self.root_fd, False)
        self.made: list[tuple[int, str, int]] = []  # (directory, name, inode) of the sockets made in the container
        pidfd, target.pidfd = target.pidfd, -1
        target.close()
        self.pidfd = pidfd
        held = int(procfs.status(procfs.read("/proc/self/status"))["CapPrm"], 16)
        kept = held & CAP_DAC_OVERRIDE if paths else 0
        # In this order: without capabilities, uid 0 of a container that shares the pid namespace could trace a dumpable child.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.capset(kept, kept, 0)

    def run(self, notes: list[str]) -> None:
        """Say what was found, then answer until the container or whoever asks has gone."""
        found = (self.container.engine, str(self.container.owner), str(self.pid), self.label)
        _tell(self.control, "found", *found, "host" if self.host_network else "own", *notes)
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.control.fileno() in ready:
                data = self.control.recv(PACKET)
                if not data:
                    break
                self._answer(os.fsdecode(data).split("\0"))
            elif self.pidfd in ready:
                break
        for directory, name, inode in self.made:
            listening.remove(directory, name, inode)

    def _answer(self, words: list[str]) -> None:
        """A socket, or why there is none. Each question gets one answer."""
        kind, *rest = words
        made: socket.socket | None = None
        try:
            if kind == "socket":
                made = socket.socket(int(rest[0]), int(rest[1]) | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            elif kind == "connect":
                made = self._connect(rest[0])
            elif kind == "bind":
                made = self._bind(rest[0])
            else:
                self.control.send("\n".join(listening.table("/proc/self/net")).encode())
                return
            sockets.send(self.control, b"ok", [made.fileno()])
        except OSError as error:
            self.control.send(b"%d" % (error.errno or errno.EIO))
        finally:
            if made:
                made.close()

    def _connect(self, path: str) -> socket.socket:
        """A socket connected to PATH as the container has it: no link on the way leads out of its root. Raises OSError."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
            fd = syscalls.openat2(self.root_fd, path.lstrip("/"), os.O_PATH, resolve)
            try:
                made.connect(f"/proc/self/fd/{fd}")
            finally:
                os.close(fd)
        except BaseException:
            made.close()
            raise
        return made

    def _bind(self, path: str) -> socket.socket:
        """A socket that listens at PATH in the container; whoever may go to that directory may connect. Raises OSError."""
        parent, _, name = path.rpartition("/")
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        directory = syscalls.openat2(self.root_fd, parent.lstrip("/") or ".", os.O_PATH | os.O_DIRECTORY, resolve)
        made, inode = listening.bind_file(directory, name, 0o666)
        self.made.append((directory, name, inode))
        return made
