"""``cntr cp``: copies files between the host and a container; the image needs no tools for it.

Two processes and two pipes. The child enters the container (its mount and user namespaces, its root) and is one end of
the copy. The parent is the other end and keeps exactly the caller's rights. The child also reads the container's
process: for that, it may have to enter a rootless container's user namespace, which the parent must not do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal

from cntr import engines
from cntr.attach.target import Target
from cntr.cp import owners, stream
from cntr.cp.host_end import HostWork
from cntr.cp.receive import Receiver
from cntr.cp.send import Sender
from cntr.cp.stream import Incoming, Outgoing, Remote
from cntr.cp.words import Sides
from cntr.errors import CntrError, TargetNotFound, printable
from cntr.linux import apart, namespaces, process, procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cntr.audit.session import Session
    from cntr.cp.interrupts import Signals
    from cntr.engines import Container
    from cntr.progress import Tell as Event

RLIMIT_AS = process.RLIMITS.index("AS")
MEMORY = 1 << 30  # bytes for the container's side: names of millions of files
GRACE_SECONDS = 3.0  # for the container's end to remove its temporary file
# chown dac_override dac_read_search fowner fsetid setfcap: everything that a copy needs. Not sys_ptrace: a link in the
# container's /proc to another process's root must not be followed. Not mknod, not sys_admin.
FILE_CAPABILITIES = 0b11111 | 1 << 31


def copy(
    source: str,
    destination: str,
    *,
    archive: bool,
    follow: bool,
    say: Callable[[str], None],
    session: Session | None = None,
    event: Event | None = None,
) -> int:
    """Copy; return 0, or 1 if something was named that was not copied. event: see Console. Raises CntrError,
    UsageError.
    """
    sides = Sides(source, destination)
    if session:
        session.target = sides.target
    with opened(sides, say, session) as container:
        work = Work(container, archive=archive, follow=follow, outward=sides.outward, event=event)
        work.session = session
        try:
            return work.run(sides.host_path, sides.container_path, say)
        finally:
            if session:
                session.copied = work.copied


@contextlib.contextmanager
def opened(sides: Sides, say: Callable[[str], None], session: Session | None) -> Iterator[Container]:
    """The container in SIDES, or a stand-in for it, for the duration of the block. Raises CntrError."""
    from cntr.images import targets

    container, stand_in = targets.resolve(sides.target, write=not sides.outward, say=say)
    try:
        if not container.rootfs or container.state != "rootfs":
            engines.verify(container)
        for line in engines.notes(container):
            say(line)
        if session:
            session.begin(container)
        yield container
    finally:
        if stand_in:
            stand_in.close()


class Work(HostWork):
    """A copy on this machine: the container's end is a child, connected by two pipes."""

    def __init__(
        self, container: Container, *, archive: bool, follow: bool, outward: bool, event: Event | None = None
    ) -> None:
        super().__init__(archive=archive, follow=follow, outward=outward, event=event)
        self.container, self.label, self.pid = container, container.label(), 0
        self.moved: Callable[[int], None] = stream.nothing  # called with counts of bytes, in the container's end
        if archive:
            self.owners = owners.of(container)

    def begin(self, container_path: bytes, signals: Signals) -> tuple[int, int]:
        """Fork the container's end."""
        to_child, to_parent = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        _widen((to_parent if self.outward else to_child)[1])
        self.pid = os.fork()
        if self.pid == 0:
            os.close(to_child[1])
            os.close(to_parent[0])
            apart.let_go()
            self.be_child(container_path, to_child[0], to_parent[1], signals)
        if self.session:
            self.session.announce()
        os.close(to_child[0])
        os.close(to_parent[1])
        return to_parent[0], to_child[1]

    def end(self) -> None:
        """Wait for the child, which ends with its pipes. If it is blocked in a filesystem that does not answer, kill it
        and do not wait.
        """
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        try:
            if not poll.poll(GRACE_SECONDS * 1000):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                if not poll.poll(GRACE_SECONDS * 1000):
                    return
            os.waitpid(self.pid, 0)
        finally:
            os.close(pidfd)

    def be_child(self, path: bytes, read_fd: int, write_fd: int, signals: Signals) -> None:
        """Run the container's end; never returns. The other ends of the pipes decide when it is over."""
        label, out = self.label, Outgoing(write_fd)
        tell = Remote(out, f"{label}:")
        try:
            signals.ignore()
            if not self.same_machine:  # the pipes belong to ssh, and cannot be closed from here
                signal.signal(signal.SIGTERM, _is_over)
            syscalls.set_process_name("cntr-cp")
            incoming = Incoming(read_fd)
            own_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            _bound_memory()
            open_path = enter(self.container, self.owners.start_time)
            if self.outward:
                sender = Sender(out, incoming, tell, open_path, own_fds, archive=self.archive)
                sender.strangers, sender.same_machine = self.owners.strangers, self.same_machine
                if not self.same_machine and self.container.owner:  # a user's container cannot make files of root's
                    sender.owner = _nobody_is_root
                out.moved = self.moved
                sender.run(path, follow=self.follow)
            else:
                receiver = Receiver(incoming, out, tell, open_path, archive=self.archive)
                receiver.moved = self.moved
                receiver.run(path)
                out.send(stream.DONE)
                out.flush()
        except (EOFError, BrokenPipeError):
            pass
        except CntrError as error:
            _last_words(tell, error)
        except OSError as error:
            what = f"{label}: {printable(str(error.strerror))} {printable(str(error.filename or ''))}".rstrip()
            _last_words(tell, CntrError(what, "`cntr doctor` says what is missing here"))
        except MemoryError:
            what = f"{label}: a directory, or names of one file, without end: more than {MEMORY >> 20} MiB of memory"
            _last_words(tell, CntrError(what, "copy its parts"))
        except BaseException as error:  # noqa: BLE001  nothing may be loaded here, not even what prints a traceback
            what = f"{label}: {type(error).__name__}: {printable(str(error))}"
            _last_words(tell, CntrError(what, "this is a bug in cntr: please report it"))
        finally:
            os._exit(0)


def _bound_memory() -> None:
    """A FUSE server in the container may list names without end: use no more than MEMORY for them."""
    size = int(procfs.read("/proc/self/statm").split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    hard = process.limits(RLIMIT_AS)[1]
    process.limits(RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))


def enter(container: Container, start_time: int = 0) -> Callable[[bytes, int], int]:
    """Make the container's root this process's own, as root of its user namespace; return a function that opens paths
    there.

    start_time: of the container's process, 0 for any. From here on nothing is imported or loaded. Raises CntrError,
    OSError.
    """
    if container.state == "rootfs":  # only files, no process: an idle Buildah container
        os.chroot(container.rootfs)
    else:
        _enter_process(container, start_time)
    os.chdir("/")
    os.umask(0)
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS

    def open_path(path: bytes, flags: int) -> int:
        return syscalls.openat2(root_fd, path.lstrip(b"/") or b".", flags, resolve)

    return open_path


def _enter_process(container: Container, start_time: int) -> None:
    target = Target(container)
    if start_time not in (0, target.start_time):
        raise TargetNotFound(
            f"{target.label}: pid {target.pid} belongs to another process now", "the container has stopped"
        )
    held = int(procfs.status(procfs.read("/proc/self/status"))["CapPrm"], 16)
    joins_user = "user" in target.namespaces
    # Files of /proc/sys and /proc/sysvipc, wherever the container has mounted them, show and set those of whoever opens them.
    namespaces.join(target.namespaces, "mnt", "net", "ipc", "uts")
    os.fchdir(target.root_fd)
    os.chroot(".")
    namespaces.join(target.namespaces, "user")
    if joins_user or target.as_owner:
        held = -1  # entering a user namespace gives all capabilities in it
        # The root there, who will own the files; in a namespace without uid 0 (bwrap --unshare-user) its lowest id.
        uid, gid = (
            0 if any(row[0] == 0 for row in rows) else min(rows, default=(0,))[0]
            for rows in (target.uid_map, target.gid_map)
        )
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups([])
        except PermissionError:  # user_namespaces(7): "deny" in /proc/PID/setgroups
            pass
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    mask = held & FILE_CAPABILITIES
    syscalls.capset(mask, mask, 0)
    # Last, since each change of credentials resets it: the container's processes must not trace this one.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    target.close()


def _last_words(tell: Remote, error: CntrError) -> None:
    try:
        tell.fatal(error)
    except BrokenPipeError:
        pass


def _is_over(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not end the removal of what is unfinished
    raise EOFError


def _nobody_is_root(uid: int, gid: int) -> tuple[int, int]:
    return uid or stream.KEEP, gid or stream.KEEP


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, stream.F_SETPIPE_SZ, stream.PIPE_SIZE)
    except OSError:  # EPERM: the user's pipes are over their limit (pipe(7)); a smaller one works too
        pass
