"""The user's sockets in a session: X11, Wayland, D-Bus, the ssh and gpg agents, and any path.

The session finds a socket in its own tmpfs, which nobody else can reach. Behind it is a process of cntr's on the
host, with the caller's ids and nothing else. It connects to the real socket and relays the data, open files
included. So it works the same on both transports (no socket can be reached through FUSE) and for every uid of the
session, and the server sees the caller as its client.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import os
import stat

from cntr.attach import bus, x11
from cntr.attach.caller import Caller
from cntr.attach.private import DIRECTORIES, INFORMATION
from cntr.errors import CntrError, printable
from cntr.linux import namespaces, sockets, syscalls
from cntr.proxy.loop import Loop
from cntr.proxy.passing import Opening, Passage
from cntr.proxy.stream import Connection, close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.private import Private
    from cntr.attach.request import Request
    from cntr.attach.target import Target

BACKLOG = 64
MOST = 256  # connections of one socket at the same time
AGAIN_SECONDS = 0.05
TRIES = 100
TCP_SECONDS = 2.0
AUTHORITY = f"{INFORMATION}/Xauthority"
X11_DIRECTORY = "tmp/.X11-unix"


class Source:
    """One socket: where the real one is, and its name in the session's tmpfs. port: at 127.0.0.1, if it has no path."""

    def __init__(self, option: str, path: str, name: str, *, port: int = 0) -> None:
        """option: as the user wrote it, for errors."""
        self.option, self.path, self.name, self.port = option, path, name, port
        self.opening: Callable[[], Opening | None] = lambda: None
        self.listener: socket.socket | None = None

    def check(self, caller: Caller) -> None:
        """Check that it exists and is the caller's or root's. Raises CntrError."""
        if self.port or self.path[:1] == "@":
            return  # no file to check: see ``Server._connect``
        shown = f"{self.option}: {printable(self.path)}"
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise CntrError(f"{shown}: {error.strerror}", "is it running? the socket must be there first") from None
        if not stat.S_ISSOCK(found.st_mode):
            raise CntrError(f"{shown}: not a socket", "`--share` brings files and directories")
        if not caller.owns(found.st_uid):
            raise CntrError(
                f"{shown}: belongs to uid {found.st_uid}, not to you", "run cntr by sudo as the user whose socket it is"
            )

    def listen(self, tree_fd: int) -> None:
        """Create the session's socket and listen. Raises OSError."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        parent, _, name = self.name.rpartition("/")
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree_fd)
        try:
            path = f"/proc/self/fd/{directory}/{name}"
            self.listener.bind(path)
            os.chmod(path, 0o666)  # the directory admits the session only, under whichever uid
        finally:
            os.close(directory)
        self.listener.listen(BACKLOG)


class SessionSockets:
    """All sockets of a session; variables: the environment that names them. ``start`` forks the process behind them."""

    def __init__(self, request: Request, target: Target, private: Private, user: tuple[int, int, int, str]) -> None:
        """user: (uid in the container, uid and gid here, home in the session). Raises CntrError, OSError."""
        self.private, self.target, (self.inside, self.uid, self.gid, self.home) = private, target, user
        self.caller = Caller()
        self.variables: dict[str, str] = {}
        self.sources: list[Source] = []
        self.reserved: socket.socket | None = None
        self.pid, self.pidfd = 0, -1
        if request.x11:
            self._x11()
        if request.agent:
            self._agent()
        if request.bus:
            self._bus()
        if request.wayland:
            self._wayland()
        for word in request.sockets:
            self._path(word)
        for source in self.sources:
            source.check(self.caller)
            self._directories(source.name)
            try:
                source.listen(private.tree_fd)
            except OSError as error:
                raise CntrError(
                    f"{source.option}: /{printable(source.name)}: {error.strerror}",
                    "another option has that name already",
                ) from None

    # --- the options ---

    def _x11(self) -> None:
        shown = os.environ.get("DISPLAY", "")
        try:
            path, number, screen = x11.display(shown)
        except ValueError:
            what = f"DISPLAY={printable(shown)} is not of this machine" if shown else "DISPLAY is not set"
            raise CntrError(f"-X: {what}", "it is :0 or localhost:10.0; sudo keeps it, `su -` does not") from None
        file = os.environ.get("XAUTHORITY") or f"{self.caller.home}/.Xauthority"
        real = x11.cookie(self.caller.read(file, x11.LONGEST_FILE), number, os.uname().nodename)
        ours, own = os.urandom(x11.COOKIE_LENGTH), self._free_display()
        source = Source("-X", path, f"{X11_DIRECTORY}/X{own}", port=0 if path else x11.FIRST_PORT + number)
        source.opening = lambda: x11.Setup(ours, real)
        self.sources.append(source)
        self.private.write(AUTHORITY, x11.authority(own, ours))
        self.variables |= {"DISPLAY": f":{own}.{screen}", "XAUTHORITY": f"/{AUTHORITY}"}

    def _free_display(self) -> int:
        """Reserve a display number in the session's network namespace: its abstract name is ours, and nobody
        listens at its path.

        X clients try @/tmp/.X11-unix/XN first. Any process of the container could listen there and type into the
        session's windows.
        """
        self.reserved = self._socket_there()
        for number in range(10, 1000):
            try:
                self.reserved.bind(f"\0/{X11_DIRECTORY}/X{number}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return number
        raise CntrError("-X: the container occupies all display numbers", "what listens in it? `ss -lx` in a session")

    def _socket_there(self) -> socket.socket:
        """A socket of the container's network namespace, made by a child: an owner without root could not return
        from there.
        """
        kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
        if "net" not in self.target.namespaces:
            return socket.socket(socket.AF_UNIX, kind)

        def make() -> int:
            namespaces.join(self.target.namespaces, "net")
            return socket.socket(socket.AF_UNIX, kind).detach()

        try:
            return socket.socket(fileno=sockets.fd_from_child(make, "socket"))
        except OSError:
            raise CntrError(
                "-X: the container's network namespace cannot be joined", "`cntr doctor` says what is missing"
            ) from None

    def _agent(self) -> None:
        path = os.environ.get("SSH_AUTH_SOCK", "")
        if not path:
            raise CntrError("-A: SSH_AUTH_SOCK is not set", "sudo keeps it with --preserve-env=SSH_AUTH_SOCK")
        self._own("-A", path, "ssh-agent.sock", "SSH_AUTH_SOCK", "")

    def _bus(self) -> None:
        address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={self.caller.runtime}/bus")
        path = bus.path(address)
        if not path:
            raise CntrError(f"--dbus: {printable(address)}: no Unix socket", "DBUS_SESSION_BUS_ADDRESS=unix:path=…")
        self._own("--dbus", path, "bus", "DBUS_SESSION_BUS_ADDRESS", "unix:path=")
        self.sources[-1].opening = lambda: bus.Authentication(self.caller.uid)

    def _own(self, option: str, path: str, name: str, variable: str, before: str) -> None:
        self.sources.append(Source(option, path, f"{INFORMATION}/{name}"))
        self.variables[variable] = f"{before}/{INFORMATION}/{name}"

    def _wayland(self) -> None:
        path = os.path.join(self.caller.runtime, os.environ.get("WAYLAND_DISPLAY") or "wayland-0")
        name = os.path.basename(path)
        self.sources.append(Source("--wayland", path, f"run/user/{self.inside}/{name}"))
        self.variables["WAYLAND_DISPLAY"] = name

    def _path(self, word: str) -> None:
        """Parse PATH or PATH:AS; AS is its path in the session."""
        path, _, place = word.partition(":")
        shown = f"--socket {printable(word)}"
        if place in ("rw", "ro"):  # as in --share; meaningless for a socket
            place = ""
        if not path.startswith("/"):
            path = os.path.abspath(path)
        name = self._name(os.path.normpath(place or path), asked=bool(place))
        if not name:
            where = "/run, /tmp, /var/tmp, /dev/shm, /root and /home"
            raise CntrError(
                f"{shown}: a session's own directories are {where}", f"name one: --socket {printable(path)}:/run/NAME"
            )
        self.sources.append(Source(shown, path, name))

    def _name(self, path: str, *, asked: bool) -> str:
        """Name of PATH in the session's tmpfs; the caller's runtime directory and home become the session's. "":
        outside of it.
        """
        places = [("/var/run", "run"), ("/run", "run")]
        places += [(where, name) for name, where, _ in DIRECTORIES]
        if not asked:
            places.insert(0, (self.caller.home, self.home.lstrip("/")))
            places.insert(0, (self.caller.runtime, f"run/user/{self.inside}"))
        for where, name in places:
            if path.startswith(f"{where}/") and where != "/":
                return name + path[len(where) :]
        return ""

    def _directories(self, name: str) -> None:
        """Create the directories that lead to NAME; those below the session's home and runtime directory belong to
        its user.
        """
        parts = name.split("/")[:-1]
        own = (f"run/user/{self.inside}", self.home.lstrip("/"))
        for depth in range(1, len(parts) + 1):
            part = "/".join(parts[:depth])
            try:
                os.mkdir(part, 0o700, dir_fd=self.private.tree_fd)
            except FileExistsError:
                continue
            mine = part.startswith(tuple(f"{place}/" for place in own))
            os.chmod(part, 0o700 if mine else 0o755, dir_fd=self.private.tree_fd)
            if mine and self.uid >= 0:
                os.chown(part, self.uid, self.gid, dir_fd=self.private.tree_fd)

    # --- the relaying process ---

    def start(self) -> None:
        """Fork it; it takes over the listeners. Raises OSError."""
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(supervisor)
            finally:
                os._exit(1)
        self.pidfd = os.pidfd_open(self.pid)
        for source in self.sources:
            if source.listener:
                source.listener.close()

    def _serve(self, supervisor: int) -> None:
        syscalls.set_process_name("cntr-sockets")
        os.setsid()  # the terminal's signals go to the session
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        syscalls.close_all_but(*(source.listener.fileno() for source in self.sources if source.listener))
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):  # the session's streams, whose readers wait for the last writer
            os.dup2(null, fd)
        # Once before it drops its capabilities, and again because a change of ids resets it.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        self.caller.become()
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # reset by the change of ids
        if os.getppid() != supervisor:
            return
        loop = Loop()
        for source in self.sources:
            Server(loop, source, self.caller)
        loop.run()

    def close(self) -> None:
        """Close everything at the end of the session."""
        if self.pid:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pidfd)
            self.pid = 0
        for made in (self.reserved, *(source.listener for source in self.sources)):
            if made:
                made.close()


class Server:
    """In the relaying process: the server side of one socket."""

    def __init__(self, loop: Loop, source: Source, caller: Caller) -> None:
        self.loop, self.source, self.caller = loop, source, caller
        self.connections: set[Connection] = set()
        self.waiting = 0
        assert source.listener
        self.listener = source.listener
        self._listen()

    def _listen(self) -> None:
        if self.listener.fileno() not in self.loop.handlers:
            self.loop.add(self.listener.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        if len(self.connections) + self.waiting >= MOST:
            self.loop.remove(self.listener.fileno())
            return
        try:
            near = socket.socket(fileno=self.listener._accept()[0])  # type: ignore[attr-defined]
        except OSError:  # EMFILE, ENOMEM: leave it in the backlog
            self.loop.remove(self.listener.fileno())
            self.loop.after(AGAIN_SECONDS, self._listen)
            return
        self.waiting += 1
        self._connect(near, TRIES)

    def _connect(self, near: socket.socket, tries: int) -> None:
        """Connect to the real socket, as the caller. Retry while the server's queue is full."""
        source = self.source
        family = socket.AF_INET if source.port else socket.AF_UNIX
        try:
            far = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError:  # EMFILE
            self._refuse(near)
            return
        try:
            if source.port:
                far.settimeout(TCP_SECONDS)  # on this machine a connect succeeds at once unless the queue is full
                far.connect(("127.0.0.1", source.port))
            else:
                far.setblocking(False)
                far.connect("\0" + source.path[1:] if source.path[:1] == "@" else source.path)
                if not self.caller.owns(sockets.Peer(far).uid):
                    raise PermissionError
            flows = Passage(near, far, source.opening()), Passage(far, near)
            connection = Connection(self.loop, near, far, flows, self._over)
        except BlockingIOError:
            far.close()
            if tries:
                self.loop.after(AGAIN_SECONDS, lambda: self._connect(near, tries - 1))
                return
            self._refuse(near)
        except OSError:
            far.close()
            self._refuse(near)
        else:
            self.waiting -= 1
            self.connections.add(connection)

    def _refuse(self, near: socket.socket) -> None:
        self.waiting -= 1
        close(near)
        self._listen()

    def _over(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._listen()
