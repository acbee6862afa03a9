"""The walk of one attach, readable as the paper's list of steps (section 3.2). ``exec`` is the same walk into the container's own root."""

from __future__ import annotations

import os

from cntr import engines
from cntr.attach import cgroup, nest
from cntr.attach.channel import Channel
from cntr.attach.exec_server import VARIABLE, Service
from cntr.attach.identity import Identity, User, user_of, withheld
from cntr.attach.monitor import Command, Session
from cntr.attach.signals import Watch
from cntr.attach.supervisor import Supervisor, hint_for
from cntr.attach.target import CAP_SYS_PTRACE, Target
from cntr.attach.tools import DEFAULT_PATH, Tools, open_tools
from cntr.errors import CntrError, StepFailed, TargetNotFound, printable
from cntr.linux import procfs, syscalls


class Request:
    """What the user asked for; see the CLI contract for each option's meaning."""

    def __init__(self, target: str, argv: list[str]) -> None:
        """The defaults of ``cntr attach``."""
        self.target, self.argv = target, argv
        self.tools = "host"
        self.transport = self.binding = "auto"
        self.read_only = self.privileged = self.verbose = False
        self.join_cgroup = True
        self.user: str | None = None
        self.environment: list[str] = []
        self.directory = "/"
        self.own_root = False  # exec: the container's own command in its own root


class OwnRoot:
    """The entrance of ``exec``: the container's own mount namespace and root."""

    __slots__ = ("steps", "target")

    def __init__(self, target: Target) -> None:
        """Nothing entered yet."""
        self.target, self.steps = target, nest.Steps()
        self.steps.run = "run in the container"

    def assemble(self) -> None:
        """Enter it. Raises OSError."""
        self.steps.now = "enter the container's root"
        if "mnt" in self.target.namespaces:
            syscalls.setns(self.target.namespaces["mnt"], syscalls.CLONE_NEWNS)
        os.fchdir(self.target.root_fd)
        os.chroot(".")


class Fds:
    """Everything to be closed on the way out, last first."""

    __slots__ = ("closers",)

    def __init__(self) -> None:
        """Nothing yet."""
        self.closers: list[Callable[[], object]] = []

    def __enter__(self) -> Fds:
        """A scope."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all."""
        while self.closers:
            self.closers.pop()()

    def fd(self, fd: int) -> int:
        """Own FD."""
        self.closers.append(lambda: os.close(fd))
        return fd


def attach(request: Request, say: Callable[[str], None]) -> int:
    """Run one session; the exit status of its command. say: prints one line to the user. Raises CntrError."""
    with Fds() as fds:
        # 1. name → pid → everything /proc says about it
        container = engines.resolve(request.target)
        engines.verify(container, runs_its_own=request.own_root)
        target = Target(container)
        fds.closers.append(target.close)
        try:
            return _run_session(request, target, fds, say)
        except OSError as error:
            if target.alive():
                raise
            # What was under way says "no such process" of some file of /proc; what matters is why.
            raise TargetNotFound(
                f"{target.label}: it stopped while cntr attached ({error.strerror})", "is it still running?"
            ) from None


def _run_session(request: Request, target: Target, fds: Fds, say: Callable[[str], None]) -> int:
    """From the target on; see ``attach``."""
    # 2. the fat side, and who serves it
    tools = None if request.own_root else open_tools(request.tools)
    if tools:
        fds.closers.append(tools.close)
    server = _serve(request, tools)
    if server:
        fds.closers.append(server.stop)
    for line in warnings(request, target):
        say(line)
    # 3. what needs the host's view: ids, cgroups, terminal
    user = user_of(target, request.user)
    doors = _open_cgroups(request, target, say)
    identity = Identity(target, user, own_root=request.own_root, privileged=request.privileged, doors=doors)
    fds.closers.append(identity.close)
    devpts_fd = fds.fd(nest.new_devpts())
    terminal = _open_terminal(devpts_fd, target, user)
    if terminal:
        fds.closers.append(terminal.close)
    # 4. the session's processes
    command = Command(
        request.argv or default_command(tools),
        environment(request, target, tools, user),
        request.directory,
        terminal.slave if terminal else -1,
        foreign=request.own_root,
    )
    service = _service(request, target) if tools else None
    if service:
        fds.closers.append(service.close)
        command.environment[VARIABLE] = service.name
    channel = Channel()
    fds.fd(channel.reports_read)
    session = Session(_entrance(request, target, tools, server, devpts_fd, fds), identity, command, channel)
    watch = Watch()
    fds.closers.append(watch.close)
    monitor = _fork(session, target)
    channel.keep_supervisor()
    if terminal:
        terminal.hand_over()
    if server:
        server.handed_over()
    # 5. until it ends
    supervisor = Supervisor(target, monitor, channel, watch, terminal, server, say)
    supervisor.separate |= command.foreign
    if service:
        service.monitor, supervisor.service = monitor, service
    status = supervisor.run()
    if request.verbose:
        for note in supervisor.outcome.notes:
            say(f"note: {printable(note)}")
    return status


def _serve(request: Request, tools: Tools | None) -> FileServer | None:
    """The file server of the fuse transport. ``auto`` is the mount transport: it needs what both need (Linux 5.2), and is faster."""
    if tools is None or request.transport != "fuse":
        if request.binding != "auto":
            raise CntrError("--binding chooses who speaks FUSE", "it goes with --transport fuse")
        return None
    from cntr.attach.fileserver import FileServer

    return FileServer(tools.root_fd, request.binding)


def _service(request: Request, target: Target) -> Service | None:
    """Who answers `cntr exec` in the session; an owner without root could not come back from the container's namespaces."""
    if target.as_owner:
        return None
    flags = [] if request.join_cgroup else ["--no-cgroup"]
    if request.user is not None:
        flags += ["--user", request.user]
    try:
        return Service(target, flags)
    except OSError:
        return None  # `cntr exec` in the session will say so


def _entrance(
    request: Request, target: Target, tools: Tools | None, server: FileServer | None, devpts_fd: int, fds: Fds
) -> nest.Nest | OwnRoot:
    """The nest, or for ``exec`` the container's own root."""
    if tools is None:
        return OwnRoot(target)
    if request.tools == "host" and not request.read_only and "mnt" in target.namespaces:
        _make_base_dir()
    own_mnt_fd = fds.fd(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
    return nest.Nest(
        target, tools, server, base=base_dir(), read_only=request.read_only, own_mnt_fd=own_mnt_fd, devpts_fd=devpts_fd
    )


def _fork(session: Session, target: Target) -> int:
    """Fork the monitor. The pid namespace takes effect for children only, so this process joins it: it forks no more."""
    try:
        step = "enter the container's pid namespace"
        if "pid" in target.namespaces:
            syscalls.setns(target.namespaces["pid"], syscalls.CLONE_NEWPID)
        step = "start a process"
        pid = os.fork()
    except OSError as error:
        raise StepFailed(f"{target.label}: {step}", error.errno or 0, "", hint_for(step, error.errno or 0)) from None
    if pid == 0:
        session.run()
    return pid


def base_dir() -> str:
    """Where the container's tree is in a session: /var/lib/cntr, or CNTR_BASE_DIR. Raises CntrError."""
    base = os.environ.get("CNTR_BASE_DIR") or nest.BASE_DIR
    if not base.startswith("/") or os.path.normpath(base) != base or base == "/":
        raise CntrError(
            f"CNTR_BASE_DIR={printable(base)}: not a clean absolute path below /", f"for example {nest.BASE_DIR}"
        )
    return base


def _make_base_dir() -> None:
    """The host's /var/lib/cntr, as a package would ship it: root makes it once, empty.

    Without it each session covers /var/lib with a stand-in (nest.make_mountpoint), 3 ms of mounts on a machine with 35 packages there.
    """
    if os.geteuid() == 0 and "CNTR_BASE_DIR" not in os.environ:
        try:
            os.mkdir(nest.BASE_DIR, 0o755)
        except OSError:
            pass  # it exists, or the root is read-only: then the stand-in it is


def _open_cgroups(request: Request, target: Target, say: Callable[[str], None]) -> cgroup.Doors:
    """The cgroups to join; none when frozen: joining a frozen cgroup freezes the joiner."""
    if not request.join_cgroup:
        return cgroup.Doors([])
    found, unreachable = cgroup.memberships(
        procfs.read("cgroup", target.proc_fd), procfs.read("/proc/self/cgroup"), procfs.read("/proc/self/mountinfo")
    )
    if any(membership.frozen for membership in found):
        say(f"note: {target.label} is paused: the session stays outside its cgroup")
        return cgroup.Doors([])
    if unreachable and request.verbose:
        say(f"note: cgroup not reachable from here: {', '.join(unreachable)}")
    try:
        return cgroup.Doors(found)
    except PermissionError as error:
        if not target.as_owner:
            raise CntrError(f"{error.filename}: {error.strerror}", hint_for("cgroup", 0)) from None
        # A user may move processes only below a cgroup delegated to them (cgroups(7)); the engine of a rootless container may.
        say(f"note: the session stays outside the container's cgroup: {error.strerror}: {error.filename}")
        return cgroup.Doors([])
    except OSError as error:  # EROFS: cntr itself runs in a container
        raise StepFailed(
            f"{target.label}: join the container's cgroup",
            error.errno or 0,
            printable(str(error.filename)),
            hint_for("cgroup", 0),
        ) from None


def _open_terminal(devpts_fd: int, target: Target, user: User) -> pty.Pty | None:
    """A pty like the user's terminal, when stdin and stdout are one; else the session's stdio is the caller's own."""
    if not (os.isatty(0) and os.isatty(1)):
        return None
    from cntr.attach import pty  # without a terminal its imports would be for nothing

    terminal = pty.Pty(devpts_fd)
    terminal.like(0, target.outside(user.uid, target.uid_map))
    return terminal


def warnings(request: Request, target: Target) -> list[str]:
    """What the user must know before: one line each."""
    found = []
    reach = target.permitted | target.bounding
    if not request.own_root and not request.privileged and reach & CAP_SYS_PTRACE:
        found.append(
            f"warning: {target.label} may hold CAP_SYS_PTRACE: its processes can reach the tools' tree through this session"
            + ("" if request.read_only else "; --read-only makes that tree read-only for the session")
        )
    return found


def environment(request: Request, target: Target, tools: Tools | None, user: User) -> dict[str, str]:
    """The session's: the container's, its PATH and SHELL the tools', without what would steer the tools (identity.WITHHELD)."""
    if tools is None:
        result = dict(target.environment)
        result.setdefault("PATH", DEFAULT_PATH)
        result.setdefault("HOME", user.home or "/")
    else:
        result = {key: value for key, value in target.environment.items() if not withheld(key)}
        result["PATH"] = tools.path
        result["HOME"] = user.home if _is_home(tools, user.home, target.outside(user.uid, target.uid_map)) else "/"
        result["SHELL"] = shell_of(tools)
        result["CNTR_TARGET"] = request.target
        result["CNTR_TARGET_PID"] = (
            procfs.status(procfs.read("status", target.proc_fd)).get("NSpid", str(target.pid)).split()[-1]
        )
        result["CNTR_BASE_DIR"] = base_dir()
        label = "".join(c if c.isascii() and (c.isalnum() or c in "._:/@-") else "?" for c in request.target)[:40]
        result["PS1"] = f"[cntr {label}] # "
        result["debian_chroot"] = f"cntr {label}"
    if user.name:
        result["USER"] = result["LOGNAME"] = user.name
    if "TERM" in os.environ:
        result["TERM"] = os.environ["TERM"]
    for setting in request.environment:
        key, equals, value = setting.partition("=")
        if not key or "\0" in setting:
            raise CntrError(
                f"-e {printable(setting)!r}: not NAME=VALUE",
                "for example -e DEBUG=1; -e NAME alone passes the caller's on",
            )
        if equals:
            result[key] = value
        elif key in os.environ:
            result[key] = os.environ[key]
    return result


def default_command(tools: Tools | None) -> list[str]:
    """A shell: the tools' own, or for ``exec`` the container's /bin/sh."""
    return ["/bin/sh"] if tools is None else [shell_of(tools)]


def _is_home(tools: Tools, path: str, uid: int) -> bool:
    """Whether a home directory, named by the container, is one on the tools' side whose start-up files can be trusted.

    A shell runs what it finds there. So it must not lie where the nest shows the container's own files, nor may anybody but root
    and UID (of the caller's user namespace) be able to write to it: an image is free to say /tmp, or another user's home.
    """
    if not path.startswith("/") or os.path.normpath(path).lstrip("/").split("/")[0] in ("", "proc", "dev", "sys"):
        return False
    if f"{os.path.normpath(path)}/".startswith(f"{base_dir()}/"):
        return False
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS  # a link could lead into those places
    try:
        fd = syscalls.openat2(tools.root_fd, path.lstrip("/"), os.O_PATH | os.O_DIRECTORY, resolve)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        return status.st_uid in (0, uid) and not status.st_mode & 0o022
    finally:
        os.close(fd)


def shell_of(tools: Tools) -> str:
    """The caller's $SHELL where the tools have it, else bash or sh, whichever they have."""
    for shell in (os.environ.get("SHELL", ""), "/bin/bash", "/bin/sh", "/usr/bin/bash", "/usr/bin/sh", "/bin/busybox"):
        if shell.startswith("/"):
            try:
                os.close(syscalls.openat2(tools.root_fd, shell.lstrip("/"), os.O_PATH, syscalls.RESOLVE_IN_ROOT))
            except OSError:
                continue
            return shell
    return "/bin/sh"


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach import pty
    from cntr.attach.fileserver import FileServer
