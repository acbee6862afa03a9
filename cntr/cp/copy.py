"""``cntr cp``: copying files between the host and a container; the image needs no tools for it.

Two processes and two pipes. The child enters the container (its mount and user namespaces, its root) and is one end of the copy; the
parent is the other and keeps the caller's rights, all of them and no more. It is the child that looks at the container's process, so
that a rootless container's user namespace, entered for that, is not entered by the host's side.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal

from cntr import engines
from cntr.attach.target import Target
from cntr.cp import owners, stream
from cntr.cp.interrupts import Interrupted, Signals
from cntr.cp.receive import Receiver
from cntr.cp.send import Sender
from cntr.cp.stream import Incoming, Outgoing, ProtocolError, Remote, Tell
from cntr.cp.streams import StreamReceiver, StreamSender
from cntr.cp.words import own_fd, split
from cntr.errors import CntrError, TargetNotFound, UsageError, printable
from cntr.linux import namespaces, procfs, syscalls
from cntr.progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.audit.session import Session
    from cntr.cp.stream import Meta
    from cntr.engines import Container
    from cntr.progress import Tell as Event

PARTIAL = 1  # exit status: something was not copied, and was named
GRACE_SECONDS = 3.0  # for the container's side to take its temporary file away
# chown dac_override dac_read_search fowner fsetid setfcap: all that a copy takes. Not sys_ptrace: a link in the container's /proc to
# another process' root is not followed; not mknod, not sys_admin.
FILE_CAPABILITIES = 0b11111 | 1 << 31


class Console(Tell):
    """The user's terminal: problems at once, notes of one text together at the end, progress in between."""

    def __init__(self, say: Callable[[str], None], event: Event | None = None) -> None:
        """say: prints one line; event: for a program, is told of everything instead."""
        self.say, self.event, self.problems = say, event, 0
        self.notes: dict[str, list[str]] = {}
        self.progress = Progress(tell=event)

    def problem(self, path: bytes, text: str) -> None:
        """One line, and the exit status."""
        self.problems += 1
        self.progress.clear()
        shown = printable(os.fsdecode(path))
        if self.event:
            self.event("problem", {"path": shown, "text": printable(text)})
        else:
            self.say(f"{shown}: {printable(text)}")

    def note(self, text: str, path: bytes) -> None:
        """Kept for the end; of many the first and the count."""
        found = self.notes.setdefault(text, ["", ""])
        found[0] = found[0] or printable(os.fsdecode(path))
        found[1] += "x" if len(found[1]) < 1000 else ""

    def warn(self, text: str) -> None:
        """At once."""
        self.progress.clear()
        if self.event:
            self.event("warning", {"text": text})
        else:
            self.say(text)

    def close(self) -> None:
        """Say the notes."""
        self.progress.clear()
        for text, (path, count) in self.notes.items():
            if self.event:
                self.event("note", {"path": path, "text": printable(text), "count": len(count)})
                continue
            more = f" (and {len(count) - 1} more)" if len(count) > 1 else ""
            self.say(f"note: {path}{more}: {printable(text)}")


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
    """Copy; the exit status: 0, or 1 when something was not copied and was named. event: see Console. Raises CntrError, UsageError."""
    (source_target, source_path), (target, path) = split(source), split(destination)
    if session:
        session.target = source_target or target
    if source_target and target:
        raise UsageError("cp: both sides are in a container", "copy to a directory of the host first")
    if not (source_target or target):
        raise UsageError("cp: neither side is in a container", "the container's side is TARGET:/PATH, from its root")
    from cntr.images import targets

    container, stand_in = targets.resolve(source_target or target, write=bool(target), say=say)
    try:
        if not container.rootfs or container.state != "rootfs":
            engines.verify(container)
        for line in engines.notes(container):
            say(line)
        if session:
            session.begin(container)
        outward = bool(source_target)
        work = Work(container, archive=archive, follow=follow, outward=outward, event=event, session=session)
        try:
            return _copy(work, source_path, path, say)
        finally:
            if session:
                session.copied = work.copied
    finally:
        if stand_in:
            stand_in.close()


def _copy(work: Work, source_path: bytes, path: bytes, say: Callable[[str], None]) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two for each level of a deep tree
    try:
        if work.outward:
            return work.run(path, source_path, say)
        return work.run(source_path, path, say)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Work:
    """One copy: the pipes, the child and the host's end. outward: from the container to the host."""

    def __init__(
        self,
        container: Container,
        *,
        archive: bool,
        follow: bool,
        outward: bool,
        event: Event | None = None,
        session: Session | None = None,
    ) -> None:
        self.container, self.archive, self.follow, self.outward = container, archive, follow, outward
        self.event, self.session = event, session
        self.pid = self.copied = 0
        self.owners = owners.of(container) if archive else owners.Owners()

    def run(self, host_path: bytes, container_path: bytes, say: Callable[[str], None]) -> int:
        """Fork and be the host's end; the exit status. Raises CntrError."""
        stream_fd = own_fd(host_path)
        to_child, to_parent = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        _widen((to_parent if self.outward else to_child)[1])
        console = Console(say, self.event)
        signals = Signals(self.container.label(), self.session)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(to_child[1])
            os.close(to_parent[0])
            self._be_child(container_path, to_child[0], to_parent[1], signals)
        if self.session:
            self.session.announce()
        os.close(to_child[0])
        os.close(to_parent[1])
        incoming, outgoing = Incoming(to_parent[0]), Outgoing(to_child[1])
        try:
            signals.watch(console.warn)
            self._be_host(host_path, stream_fd, incoming, outgoing, console)
            return PARTIAL if console.problems else 0
        except Interrupted as error:
            raise signals.error(error.number) from None
        finally:
            signals.ignore()
            console.close()
            self.copied = console.progress.done
            if self.event:
                self.event("done", {"bytes": self.copied, "problems": console.problems})
            incoming.stream.close()
            os.close(outgoing.fd)
            self._reap()
            signals.restore()

    def _be_host(self, path: bytes, stream_fd: int, incoming: Incoming, outgoing: Outgoing, console: Console) -> None:
        """stream_fd: the caller's open file that PATH is, or -1."""
        try:
            if self.outward:
                kind = Receiver if stream_fd < 0 else StreamReceiver
                receiver = kind(incoming, outgoing, console, open_on_host, archive=self.archive)
                receiver.fd = stream_fd
                receiver.metadata.owner, receiver.metadata.privileged = self.owners.outward, False
                receiver.started, receiver.moved = lambda meta: _expect(console, meta), console.progress.moved
                receiver.run(path)
            else:
                self._send(path, stream_fd, incoming, outgoing, console)
        except (EOFError, BrokenPipeError):
            raise CntrError(*self._why(incoming, console)) from None
        except ProtocolError as error:
            label = self.container.label()
            raise CntrError(
                f"{label}: {printable(str(error))}", "the copy was ended: its side is not to be trusted"
            ) from None

    def _send(self, path: bytes, stream_fd: int, incoming: Incoming, outgoing: Outgoing, console: Console) -> None:
        """The host's end of a copy into the container: complaints are read while the pipe is full, or both sides would wait."""

        def wait() -> None:
            poll = select.poll()
            poll.register(outgoing.fd, select.POLLOUT)
            poll.register(incoming.stream.fileno(), select.POLLIN)
            for fd, _ in poll.poll():
                if fd != outgoing.fd:
                    _take(incoming, console)

        os.set_blocking(outgoing.fd, False)
        outgoing.wait, outgoing.moved = wait, console.progress.moved
        own_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kind = Sender if stream_fd < 0 else StreamSender
            sender = kind(outgoing, incoming, console, open_on_host, own_fds, archive=self.archive)
            sender.fd, sender.owner = stream_fd, self.owners.inward
            sender.started = lambda meta: _expect(console, meta)
            sender.run(path, follow=self.follow)
        finally:
            os.close(own_fds)
        while _take(incoming, console):  # until all has its name
            pass

    def _why(self, incoming: Incoming, console: Console) -> tuple[str, str]:
        """Message and hint for a container's side that has gone. Raises CntrError with its own last words, if it had any."""
        try:
            while _take(incoming, console):
                pass
        except EOFError:
            pass
        label = self.container.label()
        return (
            f"{label}: the container's side of the copy ended unexpectedly",
            "run it again; `cntr --debug cp …` shows where",
        )

    def _reap(self) -> None:
        """The child ends when its pipes do. One that waits for a filesystem that does not answer is killed, and not waited for."""
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

    def _be_child(self, path: bytes, read_fd: int, write_fd: int, signals: Signals) -> None:
        """The container's end; never returns. Whoever holds the other ends of the pipes says when it is over."""
        label = self.container.label()
        out = Outgoing(write_fd)
        tell = Remote(out, f"{label}:")
        try:
            signals.ignore()
            syscalls.set_process_name("cntr-cp")
            incoming = Incoming(read_fd)
            own_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            open_path = enter(self.container, self.owners.start_time)
            if self.outward:
                sender = Sender(out, incoming, tell, open_path, own_fds, archive=self.archive)
                sender.strangers = self.owners.strangers
                sender.run(path, follow=self.follow)
            else:
                Receiver(incoming, out, tell, open_path, archive=self.archive).run(path)
                out.send(stream.DONE)
                out.flush()
        except (EOFError, BrokenPipeError):
            pass
        except CntrError as error:
            _last_words(tell, error)
        except OSError as error:
            what = f"{label}: {printable(str(error.strerror))} {printable(str(error.filename or ''))}".rstrip()
            _last_words(tell, CntrError(what, "`cntr doctor` says what is missing here"))
        except BaseException as error:  # noqa: BLE001  nothing may be loaded here, not even what prints a traceback
            what = f"{label}: {type(error).__name__}: {printable(str(error))}"
            _last_words(tell, CntrError(what, "this is a bug in cntr: please report it"))
        finally:
            os._exit(0)


def enter(container: Container, start_time: int = 0) -> Callable[[bytes, int], int]:
    """Make the container's root this process' own, as its user namespace's root; returns what opens a path there.

    start_time: of its process, 0 for whichever it is. From here on nothing is imported or loaded. Raises CntrError, OSError.
    """
    if container.state == "rootfs":  # no process, only files: an idle Buildah container
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
    namespaces.join(target.namespaces, "mnt")
    os.fchdir(target.root_fd)
    os.chroot(".")
    namespaces.join(target.namespaces, "user")
    if joins_user or target.as_owner:
        held = -1  # a new user namespace gives all capabilities in it
        # Its root, whom files will belong to; in one without a root (bwrap --unshare-user) its lowest id.
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
    # Last, since each change of credentials sets it anew: the container's processes must not trace this one.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    target.close()


def open_on_host(path: bytes, flags: int) -> int:
    """Open what the user named on the host, as any program would."""
    return os.open(path, flags | os.O_CLOEXEC)


def _take(incoming: Incoming, console: Console) -> bool:
    """One frame of a child that receives; False when it is done."""
    kind, body = incoming.receive()
    if kind == stream.DONE:
        return False
    if not stream.take_word(kind, body, console):
        raise ProtocolError(f"no word for the user: {kind!r}")
    return True


def _last_words(tell: Remote, error: CntrError) -> None:
    try:
        tell.fatal(error)
    except BrokenPipeError:
        pass


def _expect(console: Console, meta: Meta) -> None:
    console.progress.size = meta.size if meta.is_file() else 0


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, stream.F_SETPIPE_SZ, stream.PIPE_SIZE)
    except OSError:  # EPERM: the user's pipes are over their limit (pipe(7)); a narrow one does too
        pass
