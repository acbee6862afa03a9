"""The container's side of a forward: a child that finds the container, joins its network namespace and makes sockets
there.

The relay connects and binds the sockets; a socket stays in the namespace where it was made (network_namespaces(7)). The
child holds one end of a socket pair, the container's root if paths are needed, and only the capabilities that paths
need. It looks up the container itself, so a slow engine delays no connection, and only the child enters a user
namespace on the way to a rootless container. It ends with the container.
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
from cntr.linux import apart, namespaces, procfs, sockets, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit.session import Session
    from cntr.engines import Container

PACKET = 1 << 16
GO = b"y"  # the answer to "begin"
CAP_DAC_OVERRIDE = 1 << 1
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0  # between two lookups of a container that has ended
PR_SET_PDEATHSIG_KILL = int(signal.SIGKILL)


class WantedContainer:
    """The container to find. engine, owner: once it was found, it is looked up only there and as that user's; "" and -1
    before.
    """

    __slots__ = ("engine", "owner", "paths", "session", "target")

    def __init__(self, target: str, *, paths: bool, session: Session | None = None) -> None:
        """paths: whether Unix sockets by path will be needed in the container; session: decides whether it may be
        entered.
        """
        self.target, self.paths, self.session, self.engine, self.owner = target, paths, session, "", -1


def run(wanted: WantedContainer, control: socket.socket) -> None:
    """Run the child; never returns."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, PR_SET_PDEATHSIG_KILL)
        syscalls.set_process_name("cntr-forward")
        fd = os.dup2(control.detach(), 3)
        syscalls.close_range(4)
        apart.let_go()
        control = socket.socket(fileno=fd)
        os.setsid()  # the terminal's signals go to the relay
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


def _find(wanted: WantedContainer, control: socket.socket) -> tuple[Target, list[str]]:
    """Find the container; one that was there before is waited for. Raises CntrError, OSError."""
    pause = FIRST_PAUSE
    while True:
        try:
            container = engines.resolve(wanted.target)
            if not wanted.engine or (container.engine, container.owner) == (wanted.engine, wanted.owner):
                engines.verify(container, runs_its_own=True)
                notes = engines.notes(container)  # while our ids are the host's
                if wanted.session:
                    _ask(container, control)
                return Target(container), notes
        except (TargetNotFound, AmbiguousTarget, FileNotFoundError, ProcessLookupError):
            if wanted.engine in ("", "pid"):
                raise
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def _ask(container: Container, control: socket.socket) -> None:
    """Ask the parent, which writes the session's records, whether the container may be entered; exit if not."""
    found = (container.engine, container.name, container.id, container.image, container.digest)
    _tell(control, "begin", *found, str(container.pid), str(container.owner))
    if control.recv(1) != GO:
        os._exit(0)


def _tell(control: socket.socket, *words: str) -> None:
    try:
        control.send("\0".join(words).encode(errors="surrogateescape"))
    except OSError:
        pass  # the parent is gone


class Service:
    """The child in the container's network namespace, which answers one request after the other."""

    def __init__(self, target: Target, control: socket.socket, paths: bool) -> None:
        """Enter the namespace and drop what is not needed. Raises CntrError, OSError."""
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
        # Before dropping capabilities: otherwise uid 0 of a container that shares the pid namespace could trace the
        # child.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.capset(kept, kept, 0)

    def run(self, notes: list[str]) -> None:
        """Report what was found, then answer until the container or the parent has ended."""
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
        """Make a socket or report an error. Each request gets one answer."""
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
                # A packet without a byte would be taken for the end of the child.
                self.control.send("\n".join(listening.table("/proc/self/net") or ["none"]).encode())
                return
            sockets.send(self.control, b"ok", [made.fileno()])
        except OSError as error:
            self.control.send(b"%d" % (error.errno or errno.EIO))
        finally:
            if made:
                made.close()

    def _connect(self, path: str) -> socket.socket:
        """Return a socket connected to PATH in the container; no symbolic link leads out of its root. Raises OSError."""
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
        """Return a socket that listens at PATH in the container; anyone who can reach that directory may connect.
        Raises OSError.
        """
        parent, _, name = path.rpartition("/")
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        directory = syscalls.openat2(self.root_fd, parent.lstrip("/") or ".", os.O_PATH | os.O_DIRECTORY, resolve)
        made, inode = listening.bind_file(directory, name, 0o666)
        self.made.append((directory, name, inode))
        return made
