"""Access to backing files: with whose ids, and with which flags.

The mount has ``default_permissions``: the kernel checks every access of a client against the attributes and ACLs that
the server gave it. What is left to the server is *ownership*: a new file belongs to the caller. So the caller's ids
are taken for the calls that create, while the server's capabilities stay, but for CAP_FSETID: what the kernel allowed
(a caller with CAP_DAC_OVERRIDE, say) is not refused a second time, and set-id bits fall as they would for the caller.
"""

from __future__ import annotations

import contextlib
import os
import stat

from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: Flags of open(2) that don't reach the backing file: creation was done, O_DIRECT would demand aligned buffers of
#: the server (EINVAL), and appending is done per write, because F_SETFL changes it without telling the server.
STRIPPED = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_APPEND | os.O_NOFOLLOW | 0o20000  # FASYNC
O_TMPFILE = os.O_TMPFILE
_PF_KTHREAD = 0x00200000  # linux/sched.h
#: What the server has and a user has not: set-id bits stay; a filesystem's reserve may be used, and quotas be exceeded.
_SPENDING = 1 << file_syscalls.CAP_SYS_RESOURCE
_PRIVILEGED = 1 << file_syscalls.CAP_FSETID | _SPENDING
NOBODYS_GROUP = 0xFFFFFFFE  # a group that no file has
_SETID = stat.S_ISUID | stat.S_ISGID
_SOMEBODY = 65534  # not root: ext4's reserve is for an id, too (resuid=0)
AS_IS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Caller:
    """Who asks: ids in the server's user namespace, the process, and the umask where the kernel left it to us."""

    __slots__ = ("gid", "known_groups", "pid", "uid", "umask")

    #: Does /proc show the pids that requests come with? Else what is there under a number is somebody else.
    pids_are_in_proc = True
    #: Calls what opens a fd; the node table's own gives fds up and calls it again when there is none left.
    retrying: Callable[[Callable[[], int]], int] = staticmethod(lambda opener: opener())

    def __init__(self, uid: int, gid: int, pid: int, umask: int = 0, groups: tuple[int, ...] = ()) -> None:
        """pid: of the calling thread in the mounter's pid namespace, 0 when it has none there; groups: as far as told.

        Of whom no pid is known nothing is known: no capability, no groups but those told.
        """
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.umask = umask
        self.known_groups = groups

    def groups(self) -> tuple[int, ...]:
        """The supplementary groups: as far as the kernel told, else all, from /proc."""
        if self.known_groups:
            return self.known_groups
        uid, _, groups, _ = _identity(self.pid)
        return groups if self.uid in (uid, UNKNOWN_ID) else ()

    def resolved(self) -> Caller:
        """The caller with ids: the kernel leaves them out (-1) of what doesn't create, where it allows idmapped mounts.

        A caller that is gone, or has no pid here, counts as nobody.
        """
        if self.uid != UNKNOWN_ID:
            return self
        uid, gid, groups, _ = _identity(self.pid)
        return Caller(uid, gid, self.pid, self.umask, groups)

    def is_capable(self, capability: int) -> bool:
        """Does the caller, when it is root, hold this capability? (Another user's may count in its namespace only.)"""
        uid, _, _, effective = _identity(self.pid)
        return uid == 0 and self.uid in (0, UNKNOWN_ID) and bool(effective >> capability & 1)


def opens_by_handle(pid: int) -> bool:
    """Does the thread wait in open_by_handle_at(2), or serve NFS in the kernel? False where that can't be seen.

    Others come to a file handle inside the kernel: an overlay whose layers are on CntrFS looks for what it copied up. What it
    gets can't be revalidated (a dentry without a name, older than the connection's epoch), and the overlay's files
    were ESTALE; without an answer it does without.
    """
    try:
        with open(f"/proc/{pid}/syscall", "rb") as file:
            number = file.read().split()[0]
        if number.isdigit() and int(number) in file_syscalls.OPEN_BY_HANDLE_AT:
            return True
        with open(f"/proc/{pid}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & _PF_KTHREAD)
    except (OSError, IndexError, ValueError):
        return False


UNKNOWN_ID = 0xFFFFFFFF
_NOBODY: tuple[int, int, tuple[int, ...], int] = 65534, 65534, (), 0


def _identity(pid: int) -> tuple[int, int, tuple[int, ...], int]:
    """(fsuid, fsgid, supplementary groups, effective capabilities) of a thread, from /proc/PID/status.

    /proc shows ids in the reader's user namespace, which is the server's: a caller inside a user namespace comes out
    translated.
    """
    if not pid or not Caller.pids_are_in_proc:
        return _NOBODY
    uid, gid, groups, effective = _NOBODY
    try:
        fd = Caller.retrying(lambda: os.open(b"/proc/%d/status" % pid, os.O_RDONLY | os.O_CLOEXEC))
        with open(fd, "rb") as status:
            for line in status:
                key, _, value = line.partition(b":")
                if key == b"Uid":
                    uid = int(value.split()[3])
                elif key == b"Gid":
                    gid = int(value.split()[3])
                elif key == b"Groups":
                    groups = tuple(int(group) for group in value.split())
                elif key == b"CapEff":
                    effective = int(value, 16)
    except (FileNotFoundError, ProcessLookupError):
        return _NOBODY
    return uid, gid, groups, effective


def proc_shows_our_pids() -> bool:
    """Is what is mounted at /proc of this process's own pid namespace? (NSpid, proc_pid_status(5), tells the depth.)"""
    try:
        with open("/proc/self/status", "rb") as status:
            own = [line.split()[1:] for line in status if line.startswith(b"NSpid:")]
    except OSError:
        return False
    return own == [[b"%d" % os.getpid()]]


SERVER = Caller(0, 0, 0)


class Credentials:
    """The scope in which the calling thread acts as a caller. Not reentrant, and nothing may be awaited inside."""

    def __init__(self) -> None:
        """Take the server's own capabilities as what to come back to."""
        effective, permitted, inheritable = file_syscalls.capget()
        self._own = file_syscalls.pack_capabilities(effective, permitted, inheritable)
        self._lowered = file_syscalls.pack_capabilities(effective & ~_PRIVILEGED, permitted, inheritable)
        self._lowering = _WithoutFsetid(self._own, self._lowered)
        self._ordinary = _Ordinary(self._own, self._lowered)
        frugal = file_syscalls.pack_capabilities(effective & ~_SPENDING, permitted, inheritable)
        self._keeping_setid = _Ordinary(self._own, frugal)
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self._caller = SERVER
        self._groups = False
        self._unprivileged = False

    def as_caller(self, caller: Caller, groups: bool = False, unprivileged: bool = False) -> Credentials:
        """``with credentials.as_caller(caller):``; groups: with the caller's supplementary groups, too.

        unprivileged: without the server's capabilities over files, so that the backing filesystem checks permission.
        """
        self._caller = caller
        self._groups = groups and caller.uid != self.uid
        self._unprivileged = unprivileged
        return self

    def __enter__(self) -> None:
        """Take the caller's ids."""
        caller = self._caller
        if self._groups:
            file_syscalls.setgroups(caller.groups())
        if caller.umask:
            os.umask(caller.umask)
        if caller.gid != self.gid:
            file_syscalls.setfsgid(caller.gid)
        if caller.uid != self.uid:
            file_syscalls.setfsuid(caller.uid)
            if not self._unprivileged:
                file_syscalls.capset(self._lowered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back to the server's own."""
        caller = self._caller
        if caller.uid != self.uid:
            file_syscalls.setfsuid(self.uid)
            file_syscalls.capset(self._own)
        if caller.gid != self.gid:
            file_syscalls.setfsgid(self.gid)
        if caller.umask:
            os.umask(0)
        if self._groups:
            file_syscalls.setgroups(())

    def without_fsetid(self) -> _WithoutFsetid:
        """A scope in which writing kills set-id bits, as it does for an unprivileged writer."""
        return self._lowering

    def registering(self) -> contextlib.AbstractContextManager[None]:
        """The scope to register a backing file in: the kernel takes the thread's credentials for all who write to it.

        They share one registration, so it is an ordinary user's.
        """
        return self._ordinary

    def ordinary(self, keeps_setid: bool = False) -> contextlib.AbstractContextManager[None]:
        """The scope to write in for whoever is not root, in any thread: no reserve, no more than the quota.

        keeps_setid: whether set-id bits fall was the kernel's business, and is done.
        """
        return self._keeping_setid if keeps_setid else self._ordinary

    def killpriv(self, fd: int, caller: Caller | None) -> contextlib.AbstractContextManager[None]:
        """The scope to change a file's data in: set-id bits fall as they would for the caller (None: they stay).

        Whether S_ISGID falls depends on the caller's groups, so it is done as the caller; but looking these up is
        dear, and only a file with such a bit needs it.
        """
        if caller is None:
            return AS_IS
        if not self._clears_setid(fd, caller):
            return self._spending(caller)
        caller = caller.resolved()
        if caller.uid == self.uid:
            return self.without_fsetid()
        return self.as_caller(caller, groups=True)

    @staticmethod
    def _clears_setid(fd: int, caller: Caller) -> bool:
        return bool(os.fstat(fd).st_mode & _SETID) and not caller.is_capable(file_syscalls.CAP_FSETID)

    def _spending(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        """The scope to use up space in; a caller whose id the kernel left out is taken for one who isn't root."""
        return AS_IS if caller.uid == self.uid else self.ordinary()

    def killpriv_elsewhere(
        self, fd: int, caller: Caller | None, remote: bool
    ) -> contextlib.AbstractContextManager[None]:
        """``killpriv`` for one use in another thread: all that is asked about the caller is asked now.

        remote: the file may keep one waiting, so it is asked by that thread, and the caller too.
        """
        if caller is None:
            return AS_IS
        if remote:
            return _AskedThere(self, fd, caller)
        if not self._clears_setid(fd, caller):
            return self._spending(caller)
        caller = caller.resolved()
        known = Caller(caller.uid, caller.gid, 0, groups=caller.groups())
        credentials = Credentials()
        return (
            credentials.without_fsetid() if caller.uid == credentials.uid else credentials.as_caller(known, groups=True)
        )

    def raised(self) -> contextlib.AbstractContextManager[None]:
        """The scope for what takes capabilities; a server that lowered its own (``nobody``) has them back inside."""
        return AS_IS


class _WithoutFsetid:
    """The scope of ``without_fsetid``: same ids, CAP_FSETID lowered."""

    def __init__(self, own: bytes, lowered: bytes) -> None:
        self._own, self._lowered = own, lowered

    def __enter__(self) -> None:
        file_syscalls.capset(self._lowered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file_syscalls.capset(self._own)


class _Ordinary:
    """The scope of ``ordinary``: another id and fewer capabilities; the open fd it is for has its permissions already."""

    def __init__(self, own: bytes, lowered: bytes) -> None:
        self._own, self._lowered = own, lowered
        self._uid, self._gid = os.geteuid(), os.getegid()
        # Group 0 has no reserve (ext4 takes resgid=0 for "none"), and each change of credentials takes the kernel 2 us.
        self._changes_group = self._gid != 0

    def __enter__(self) -> None:
        if self._changes_group:
            file_syscalls.setfsgid(_SOMEBODY)
        file_syscalls.setfsuid(_SOMEBODY)
        file_syscalls.capset(self._lowered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file_syscalls.setfsuid(self._uid)
        if self._changes_group:
            file_syscalls.setfsgid(self._gid)
        file_syscalls.capset(self._own)


class _AskedThere:
    """The scope of ``killpriv``, made by the thread that enters it."""

    def __init__(self, credentials: Credentials, fd: int, caller: Caller) -> None:
        self._asked = credentials, fd, caller

    def __enter__(self) -> None:
        own, fd, caller = self._asked
        credentials = object.__new__(type(own))
        credentials.__dict__.update(own.__dict__)
        self._scope = credentials.killpriv(fd, caller)
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)


def proc_path(fd: int) -> bytes:
    """A path that leads to the inode behind fd, an O_PATH fd of a symbolic link included."""
    return b"/proc/self/fd/%d" % fd
