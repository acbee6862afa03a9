"""One attach from top to bottom, in the order of the paper (section 3.2). ``exec`` takes the same steps with the
container's root.
"""

from __future__ import annotations

import errno
import os

from cntr import engines
from cntr.attach import environment, etc_files, joining, memory, nest, outermost, steps, terminfo, tracers
from cntr.attach.channel import Channel
from cntr.attach.exec_server import ExecServer
from cntr.attach.identity import Identity, user_of
from cntr.attach.launcher import Command
from cntr.attach.monitor import Monitor
from cntr.attach.private import INFORMATION, Devices, Private
from cntr.attach.request import Request
from cntr.attach.signals import SignalFile
from cntr.attach.stdio import Stdio
from cntr.attach.supervisor import Supervisor
from cntr.attach.target import Target
from cntr.attach.tools import DEFAULT_PATH, HOST_ALL, Tools, of_host
from cntr.attach.view import HIDDEN, View, namespaces_used_up
from cntr.errors import CntrError, StepFailed, TargetNotFound, printable
from cntr.linux import attributes, namespaces, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach import pty
    from cntr.attach.fileserver import FileServer
    from cntr.attach.shares import Share
    from cntr.engines import Container

IMAGES = ("image:", "archive:", "oci:", "dir:")  # the prefixes of targets that never run: cntr.images.KINDS


class Fds:
    """What is to be closed at the end, last opened first."""

    __slots__ = ("closers",)

    def __init__(self) -> None:
        self.closers: list[Callable[[], object]] = []

    def __enter__(self) -> Fds:
        return self

    def __exit__(self, *_: object) -> None:
        while self.closers:
            self.closers.pop()()

    def fd(self, fd: int) -> int:
        """Own FD: close it at the end."""
        self.closers.append(lambda: os.close(fd))
        return fd


def attach(request: Request, say: Callable[[str], None]) -> int:
    """Run one session; return the exit status of its command. say: prints one line to the user. Raises CntrError."""
    attributes.get_ready()
    with Fds() as fds:
        # 1. name → pid → everything /proc says about it
        container = _find(request, fds, say)
        engines.verify(container, runs_its_own=request.own_root)
        protect = request.protect if not fds.closers else None  # nothing runs in a stand-in that could trace us
        if protect and tracers.of_owner(container.pid):
            protect()
        target = Target(container, impatient=True)
        if protect and not target.as_owner and tracers.of(request, target):
            protect()
        fds.closers.append(target.close)
        if request.session:  # only after protect, which restarts cntr
            request.session.begin(container)
        if not request.own_root and outermost.stay_outside(target):
            say(
                f"note: {target.label}'s process is in a user namespace that it made itself: the session stays outside of that"
            )
        try:
            return _run_session(request, target, fds, say)
        except OSError as error:
            if target.alive():
                raise
            # A missing /proc file raised "no such process"; report what it means.
            raise TargetNotFound(
                f"{target.label}: it stopped while cntr attached ({error.strerror})", "is it still running?"
            ) from None


def _find(request: Request, fds: Fds, say: Callable[[str], None]) -> Container:
    """Return the container, running; for a stopped one or an image, a stand-in that ends with FDS. Raises CntrError."""
    missing: TargetNotFound | None = None
    if not request.entrypoint and not request.target.startswith(IMAGES):
        try:
            container = engines.resolve(request.target)
        except TargetNotFound as error:
            missing = error
        else:
            if request.write or request.network:
                raise CntrError(
                    f"{container.label()} is running: --write and --network are for stopped containers",
                    "leave them out",
                )
            if container.state != "rootfs" or not request.own_root:
                return container
    from cntr.images import entrypoint  # nothing runs in a working container of Buildah's, mounted or not

    return entrypoint.for_session(request, missing, fds.closers, say)


def _open_tools(source: str) -> Tools:
    if source in ("host", HOST_ALL):
        return of_host()
    from cntr.attach import foreign_tools

    return foreign_tools.open_tools(source)


class Prepared:
    """Everything that a session consists of, opened before the fork; fds closes it all."""

    def __init__(self, request: Request, target: Target, fds: Fds, say: Callable[[str], None]) -> None:
        """Raises CntrError, OSError."""
        self.request, self.target, self.fds = request, target, fds
        # 2. the tools: which of them are shown, and who serves them
        self.tools = None if request.own_root else _open_tools(request.tools)
        if self.tools:
            fds.closers.append(self.tools.close)
            if request.session and self.tools.container:
                request.session.check_target(self.tools.container)
        traced = tracers.of(request, target)
        outside = tracers.user_of(request, target)
        for line in tracers.warnings(request, target, traced, outside):
            say(line)
        self.proc_fd = fds.fd(os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.own_mnt_fd = fds.fd(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        self.view = self._view()
        self.server = self._serve()
        if self.server:
            fds.closers.append(self.server.stop)
        # 3. what needs the host's view: ids, cgroups, terminal, the session's own files
        self.user = user_of(target, request.user, own_root=request.own_root)
        cgroups = joining.open_cgroups(request, target, traced, say)
        fds.closers.append(cgroups.close)
        self.memory = cgroups.memory
        filters = tracers.filters_of(request, target, traced, say)
        self.identity = Identity(
            target, self.user, request, cgroups, self.proc_fd, filters, traced=bool(traced or outside)
        )
        if self.identity.raised:
            say(
                f"note: nothing would run under {target.label}'s {', '.join(self.identity.raised)}: raised in the session"
            )
        self.uid, self.gid = (
            target.outside(number, rows)
            for number, rows in ((self.user.uid, target.uid_map), (self.user.gid, target.gid_map))
        )
        self.devpts_fd = fds.fd(nest.new_devpts())
        self.terminal = self._open_terminal()
        # A pipe of the caller's can be reopened at both ends by whoever gets it; and a recording needs the data to
        # pass through here.
        foreign = (
            bool(traced or outside) or not request.uses_host or bool(request.session and request.session.recording)
        )
        self.stdio = Stdio(self.terminal.slave if self.terminal else -1, self.uid, foreign=foreign)
        fds.closers.append(self.stdio.close)
        self.null_fd = fds.fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self.shell = environment.shell_of(self.tools.root_fd, HIDDEN if self.view else ()) if self.tools else "/bin/sh"
        self.home = f"/home/{self._name()}" if self.user.uid else "/root"
        self.private = self._private() if self.tools else None
        self.brought = self._bring(self.private) if self.private else {}
        self.nest = self._nest(self.tools, self.private) if self.tools and self.private else nest.OwnRoot(target)
        self.command = self._command()
        if target.silent:
            if "/" in target.slow_places:
                raise CntrError(
                    f"{target.label}: its root file system does not answer", "it is of FUSE: see to its server"
                )
            say(f"note: {target.label}: some of its files do not answer: they are left out")

    def _name(self) -> str:
        """The name of the session's user."""
        name = self.user.name
        known = name and etc_files.safe_name(name) and (name != "root" or not self.user.uid)
        return name if known else f"uid{self.user.uid}" if self.user.uid else "root"

    def _view(self) -> View | None:
        """The tools view; None for the container's own root, or if the whole host is asked for."""
        if self.tools is None or self.request.tools == HOST_ALL:
            return None
        as_owner, nobody_fd = self.target.as_owner, -1
        if not as_owner:
            try:
                nobody_fd = self.fds.fd(namespaces.nobody())
            except OSError as error:
                number = error.errno or 0
                if number not in (errno.ENOSPC, errno.EPERM, errno.EINVAL, errno.ENOSYS) or namespaces_used_up(number):
                    raise StepFailed(
                        f"{self.target.label}: {steps.VIEW.name}", number, "", steps.VIEW.advice(number)
                    ) from None
                # This machine allows no user namespaces (user.max_user_namespaces): files that only root may read
                # are searched for.
        overlay = None
        if nobody_fd >= 0 and (self.request.tools != "host" or " - overlay " in procfs.read("/proc/self/mountinfo")):
            from cntr.linux import nobodys_overlay  # imported before another mount namespace is entered

            overlay = nobodys_overlay.make
        return View(nobody_fd, self.proc_fd, overlay, as_owner=as_owner)

    def _serve(self) -> FileServer | None:
        """Start the file server of the fuse transport. ``auto`` means the mount transport: Linux 5.2 is required
        anyway, and it is faster.
        """
        if self.tools is None or self.request.transport != "fuse":
            if self.request.binding != "auto":
                raise CntrError("--binding selects the FUSE library", "it goes with --transport fuse")
            return None
        from cntr.attach.fileserver import FileServer

        return FileServer(self.tools, self.request.binding, self.view, self.own_mnt_fd)

    def _open_terminal(self) -> pty.Pty | None:
        """Open a pty like the user's terminal, if stdin and stdout are one. Stdio handles other streams."""
        if not (os.isatty(0) and os.isatty(1)):
            return None
        from cntr.attach import pty  # only sessions with a terminal need it

        terminal = pty.Pty(self.devpts_fd)
        self.fds.closers.append(terminal.close)
        terminal.like(0, self.uid)
        return terminal

    def _private(self) -> Private:
        """The session's own directories and written files."""
        private = Private(self.home, self.uid, self.gid)
        self.fds.closers.append(private.close)
        tools, target = self.tools, self.target
        assert tools
        user = (self.user.uid, self.user.gid, self._name(), self.home, self.shell)
        for name, data in etc_files.written(target, tools.read_file, user):
            private.write(f"etc/{name}", data)
        for name, data in terminfo.missing(tools.read_file):
            private.write(f"{self.home[1:]}/{name}", data)
        private.write(f"{INFORMATION}/environ", environment.listing(target.environment))
        return private

    def _bring(self, private: Private) -> dict[str, str]:
        """Bring in the caller's sockets; return the variables that name them."""
        request = self.request
        if not (request.x11 or request.agent or request.bus or request.wayland or request.sockets):
            return {}
        if self.view is None:
            raise CntrError(
                "-X, -A, --dbus, --wayland and --socket go with the tools view",
                "host:all has this machine's own sockets: -e DISPLAY -e XAUTHORITY -e SSH_AUTH_SOCK …",
            )
        from cntr.attach import user_sockets

        user = (self.user.uid, self.uid, self.gid, self.home)
        brought = user_sockets.SessionSockets(request, self.target, private, user)
        self.fds.closers.append(brought.close)
        brought.start()
        return brought.variables

    def _nest(self, tools: Tools, private: Private) -> nest.Nest:
        request, fds = self.request, self.fds
        if request.uses_host and "mnt" in self.target.namespaces:
            nest.make_base_dir()
        devices = Devices()
        fds.closers.append(devices.close)
        shares: list[Share] = []
        if request.shares:
            from cntr.attach.shares import Share

            for word in request.shares:
                policy = request.session.policy if request.session else None
                shares.append(Share(word, self.uid, self.gid, nest.base_dir(), policy))
                fds.closers.append(shares[-1].close)
        entrance: nest.ServedTools | nest.MountedTools
        if self.server:
            entrance = nest.ServedTools(self.server, is_view=self.view is not None)
        else:
            entrance = nest.MountedTools(tools, self.own_mnt_fd, self.view, read_only=request.read_only)
        return nest.Nest(
            self.target,
            entrance,
            base=nest.base_dir(),
            devpts_fd=self.devpts_fd,
            private=private,
            devices=devices,
            shares=shares,
            proc_fd=self.proc_fd,
        )

    def _command(self) -> Command:
        request, target, tools = self.request, self.target, self.tools
        if tools is None:
            home = self.user.home if request.user is not None else ""
            variables = environment.of_container(
                target.environment, DEFAULT_PATH, home, terminal=bool(self.terminal) or not request.entrypoint
            )
            argv = request.argv or ["/bin/sh"]
            directories = [request.directory] if request.directory else [target.working_directory(), "/"]
        else:
            variables = environment.of_session(
                request.target,
                procfs.status(procfs.read("status", target.proc_fd)).get("NSpid", str(target.pid)).split()[-1],
                nest.base_dir(),
                path=tools.path,
                home=self.home,
                shell=self.shell,
                user=self._name(),
                uid=self.user.uid,
                host_tools=request.uses_host,
                shares=[os.path.realpath(word.removesuffix(":rw").removesuffix(":ro")) for word in request.shares],
            )
            variables |= self.brought
            argv, directories = request.argv or [self.shell], [request.directory or "/"]
        environment.add(variables, request.environment, target.environment)
        slave = self.terminal.slave if self.terminal else -1
        return Command(argv, variables, directories, list(self.stdio.given), slave)


def _run_session(request: Request, target: Target, fds: Fds, say: Callable[[str], None]) -> int:
    """Run the session on an open target; see ``attach``."""
    prepared = Prepared(request, target, fds, say)
    # 4. the session's processes
    exec_server = _exec_server(request, target, prepared.private) if prepared.private else None
    if exec_server:
        fds.closers.append(exec_server.close)
    channel = Channel()
    fds.fd(channel.reports_read)
    fds.fd(channel.words_read)
    left_files = prepared.private.left_files if prepared.private and prepared.view else None
    stdio, identity, null_fd = prepared.stdio, prepared.identity, prepared.null_fd
    monitor = Monitor(prepared.nest, identity, prepared.command, channel, left_files, stdio=stdio, null_fd=null_fd)
    if request.session and (limit := request.session.limit):
        from cntr.audit import times  # few sessions have one

        monitor.overdue = times.overdue(limit)
    watch = SignalFile()
    fds.closers.append(watch.close)
    pid = _fork(monitor, target)
    channel.keep_supervisor()
    terminal, server = prepared.terminal, prepared.server
    stdio.hand_over(terminal.slave if terminal else -1)
    if terminal:
        terminal.hand_over()
    if server:
        server.handed_over()
    # 5. wait for the end
    supervisor = Supervisor(target, pid, channel, watch, terminal, stdio, server, exec_server, prepared.proc_fd, say)
    if request.session:
        supervisor.audited(request.session)
    status = memory.watched(supervisor.run, prepared.memory, target.label, say)
    if request.verbose:
        for note in supervisor.outcome.notes:
            say(f"note: {printable(note)}")
    return status


def _exec_server(request: Request, target: Target, private: Private) -> ExecServer | None:
    """Who answers `cntr exec` in the session; None for an owner without root, who could not return from the
    container's namespaces.
    """
    if target.as_owner:
        if request.forward:
            raise CntrError(
                "--forward needs root",
                f"`cntr forward {printable(request.target)} …` beside it does the same",
            )
        return None
    flags = [] if request.join_cgroup else ["--no-cgroup"]
    if request.user is not None:
        flags += ["--user", request.user]
    reason = ["--reason", request.session.reason] if request.session and request.session.reason else []
    directory_fd = os.open(INFORMATION, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=private.tree_fd)
    try:
        return ExecServer(target, [*flags, *reason], directory_fd, reason if request.forward else None)
    finally:
        os.close(directory_fd)


def _fork(monitor: Monitor, target: Target) -> int:
    """Fork the monitor; its pid. Raises CntrError."""
    try:
        pid = os.fork()
    except OSError as error:
        number = error.errno or 0
        raise StepFailed(f"{target.label}: {steps.FORK.name}", number, "", steps.FORK.advice(number)) from None
    if pid == 0:
        monitor.run()
    return pid
