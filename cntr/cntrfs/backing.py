"""Access to backing files: with which ids, and with which flags.

The mount has ``default_permissions``: the kernel checks every access of a client against the attributes and ACLs that
the server returned. The server is responsible for *ownership*: a new file belongs to the caller. So calls that create
files run with the caller's ids, and with the server's capabilities except CAP_FSETID. What the kernel has allowed (to a
caller with CAP_DAC_OVERRIDE, for example) is then not refused a second time, and set-id bits are cleared as they would
be for the caller.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from cntr.cntrfs.scopes import Ordinary, PlainUser, Raised
from cntr.linux import credentials, file_syscalls
from cntr.linux.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: Flags of open(2) that do not reach the backing file: the file has been created; O_DIRECT would require aligned
#: buffers (EINVAL); appending is done per write, because F_SETFL changes it without notice to the server; and O_PATH,
#: which the kernel does not send, would make O_TMPFILE open the directory.
STRIPPED = (
    os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_APPEND | os.O_NOFOLLOW | os.O_PATH | 0o20000
)  # the last: FASYNC
O_TMPFILE = os.O_TMPFILE
_NOT_YET_ASLEEP = 20  # looks at a client, a millisecond apart
_PF_KTHREAD = 0x00200000  # linux/sched.h
#: Capabilities of the server that a user lacks: keeping set-id bits; using a filesystem's reserved blocks and
#: exceeding quotas.
_SPENDING = 1 << credentials.CAP_SYS_RESOURCE
_PRIVILEGED = 1 << credentials.CAP_FSETID | _SPENDING
NOBODYS_GROUP = 0xFFFFFFFE  # a group that no file has
_SETID = stat.S_ISUID | stat.S_ISGID
AS_IS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Caller:
    """The caller of a request: ids in the server's user namespace, pid, and the umask if the kernel leaves it to the
    server.
    """

    __slots__ = ("gid", "known_groups", "pid", "uid", "umask")

    #: Whether /proc shows the pids that requests carry. If not, a number in /proc is another process.
    pids_are_in_proc = True
    #: Calls a function that opens an fd. The node table replaces it by one that closes fds and retries when none is
    #: left.
    retrying: Callable[[Callable[[], int]], int] = staticmethod(lambda opener: opener())

    def __init__(self, uid: int, gid: int, pid: int, umask: int = 0, groups: tuple[int, ...] = ()) -> None:
        """pid: of the calling thread in the mounter's pid namespace, 0 if it has none there; groups: those the kernel
        sent.

        Without a pid nothing more can be found out: no capability, no other groups.
        """
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.umask = umask
        self.known_groups = groups

    def groups(self) -> tuple[int, ...]:
        """The supplementary groups: those the kernel sent, else all, from /proc."""
        if self.known_groups:
            return self.known_groups
        uid, _, groups, _ = _identity(self.pid)
        return groups if self.uid in (uid, UNKNOWN_ID) else ()

    def resolved(self) -> Caller:
        """The caller with ids: on a mount that allows idmapping, the kernel sends -1 in requests that create nothing.

        A caller that has ended, or has no pid here, counts as nobody.
        """
        if self.uid != UNKNOWN_ID:
            return self
        uid, gid, groups, _ = _identity(self.pid)
        return Caller(uid, gid, self.pid, self.umask, groups)

    def is_capable(self, capability: int) -> bool:
        """Whether the caller is root and holds this capability. (Another user's may count in its own namespace only.)"""
        uid, _, _, effective = _identity(self.pid)
        return uid == 0 and self.uid in (0, UNKNOWN_ID) and bool(effective >> capability & 1)

    def rights(self) -> OpenerIdentity:
        """Everything that decides what the caller may do, for ``Credentials.acting``. Only root's capabilities count:
        another user's may be of its own namespace.
        """
        uid, gid, groups, effective = _identity(self.pid)
        if self.uid not in (uid, UNKNOWN_ID):  # the thread has ended, and its pid is another's
            return OpenerIdentity(self.uid, self.gid, (), 0)
        return OpenerIdentity(uid, gid, groups, 0 if uid else effective)


class OpenerIdentity(NamedTuple):
    """Ids and effective capabilities of somebody who opened a file."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    effective: int


def opens_by_handle(pid: int) -> bool:
    """Whether the thread is in open_by_handle_at(2), or serves NFS in the kernel; False if that is not visible.

    Others use a file handle inside the kernel: an overlay whose layers are on CntrFS looks for the origin of copied-up
    files. The result cannot be revalidated (a dentry without a name, older than the connection's epoch), and the
    overlay's files became ESTALE. Without an answer the overlay manages without the origin.
    """
    try:
        for _ in range(_NOT_YET_ASLEEP):
            with open(f"/proc/{pid}/syscall", "rb") as file:
                number = file.read().split()[0]
            if number != b"running":
                break
            time.sleep(0.001)  # it is about to wait for our answer
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

    /proc shows ids in the reader's user namespace, which is the server's: ids of a caller in another user namespace are
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
    """Whether /proc belongs to this process's own pid namespace. NSpid (proc_pid_status(5)) tells the depth."""
    try:
        with open("/proc/self/status", "rb") as status:
            own = [line.split()[1:] for line in status if line.startswith(b"NSpid:")]
    except OSError:
        return False
    return own == [[b"%d" % os.getpid()]]


SERVER = Caller(0, 0, 0)


class Credentials:
    """A scope in which the calling thread acts as a caller. Not reentrant; do not await inside."""

    def __init__(self) -> None:
        """Record the server's own capabilities, which leaving the scope restores."""
        self._masks = effective, permitted, inheritable = credentials.capget()
        self._lowered = credentials.pack_capabilities(effective & ~_PRIVILEGED, permitted, inheritable)
        self._frugal = credentials.pack_capabilities(effective & ~_SPENDING, permitted, inheritable)
        self._take(credentials.pack_capabilities(effective, permitted, inheritable))
        self._spending_more: contextlib.AbstractContextManager[None] = AS_IS
        self._registering: contextlib.AbstractContextManager[None] = self._ordinary
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self._caller = SERVER
        self._groups = False
        self._unprivileged = False

    def _take(self, own: bytes) -> None:
        self._own = own
        self._lowering = Raised(own, self._lowered)
        self._ordinary = Ordinary(own, self._lowered)
        self._keeping_setid = Ordinary(own, self._frugal)

    def be_frugal(self) -> None:
        """From now on the calling thread, and those that it starts, have CAP_SYS_RESOURCE in the scope ``spending`` only.

        So a file is registered with a change of the user id alone: each change of credentials takes the kernel 2 us.
        """
        credentials.capset(self._frugal)
        self._take(self._frugal)
        if self._masks[0] & _SPENDING:
            whole = credentials.pack_capabilities(*self._masks)
            self._spending_more = Raised(self._frugal, whole)
        as_user = PlainUser(self.uid)
        before = credentials.capget()
        with as_user:
            meanwhile = credentials.capget()
        # With SECBIT_NO_SETUID_FIXUP, or without all capabilities, the kernel does not change them with the id.
        if credentials.capget() != before:
            credentials.capset(self._frugal)
        elif not self.gid and not meanwhile[0] & _PRIVILEGED and meanwhile[0] >> credentials.CAP_SYS_ADMIN & 1:
            self._registering = as_user

    def spending(self) -> contextlib.AbstractContextManager[None]:
        """The scope in which the server has CAP_SYS_RESOURCE, if it has it at all: quotas do not bind it. For any thread."""
        return self._spending_more

    def as_caller(self, caller: Caller, groups: bool = False, unprivileged: bool = False) -> Credentials:
        """``with credentials.as_caller(caller):``. groups: also take the caller's supplementary groups.

        unprivileged: drop the server's capabilities over files, so that the backing filesystem checks permissions.
        """
        self._caller = caller
        self._groups = groups and caller.uid != self.uid
        self._unprivileged = unprivileged
        return self

    def __enter__(self) -> None:
        """Take the caller's ids."""
        caller = self._caller
        if self._groups:
            credentials.setgroups(caller.groups())
        if caller.umask:
            os.umask(caller.umask)
        if caller.gid != self.gid:
            credentials.setfsgid(caller.gid)
        if caller.uid != self.uid:
            credentials.setfsuid(caller.uid)
            if not self._unprivileged:
                credentials.capset(self._lowered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the server's ids."""
        caller = self._caller
        if caller.uid != self.uid:
            credentials.setfsuid(self.uid)
            credentials.capset(self._own)
        if caller.gid != self.gid:
            credentials.setfsgid(self.gid)
        if caller.umask:
            os.umask(0)
        if self._groups:
            credentials.setgroups(())

    def without_fsetid(self) -> Raised:
        """A scope in which writing clears set-id bits, as it does for an unprivileged writer."""
        return self._lowering

    def registering(self) -> contextlib.AbstractContextManager[None]:
        """The scope for registering a backing file: the kernel uses the thread's credentials for everyone who writes to
        it.

        All writers share the registration, so it is made with an ordinary user's credentials.
        """
        return self._registering

    def reopening(self) -> contextlib.AbstractContextManager[None]:
        """The scope in which a file is opened by its handle and registered, and nothing else is
        done: raised capabilities stay raised.
        """
        return AS_IS

    def ordinary(self, keeps_setid: bool = False) -> contextlib.AbstractContextManager[None]:
        """The scope for writes of callers other than root, in any thread: no reserved blocks, and quotas apply.

        keeps_setid: the kernel has cleared set-id bits already.
        """
        return self._keeping_setid if keeps_setid else self._ordinary

    def killpriv(self, fd: int, caller: Caller | None) -> contextlib.AbstractContextManager[None]:
        """The scope for changing a file's data: set-id bits are cleared as for the caller (None: they stay).

        Whether S_ISGID is cleared depends on the caller's groups, so the change is made as the caller. Looking the
        groups up is expensive and is done only for a file with such a bit.
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
        return bool(os.fstat(fd).st_mode & _SETID) and not caller.is_capable(credentials.CAP_FSETID)

    def _spending(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        """The scope for using disk space. A caller whose ids the kernel did not send counts as not root."""
        return self.spending() if caller.uid == self.uid else self.ordinary()

    def killpriv_elsewhere(
        self, fd: int, caller: Caller | None, remote: bool
    ) -> contextlib.AbstractContextManager[None]:
        """``killpriv`` for one use in another thread; the caller is examined now.

        remote: accessing the file may block, so the other thread examines it, and the caller.
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

    def acting(self, rights: OpenerIdentity | None) -> contextlib.AbstractContextManager[None]:
        """The scope to act with RIGHTS and none of the server's own capabilities; None: as the server. For any thread."""
        return AS_IS if rights is None else _OpenerCaller(self._own, self._masks, rights)

    def raised(self) -> contextlib.AbstractContextManager[None]:
        """The scope for calls that need capabilities; a server that lowered its own (``nobody``) has them inside."""
        return AS_IS


class _OpenerCaller:
    """The scope of ``acting``."""

    def __init__(self, own: bytes, masks: tuple[int, int, int], rights: OpenerIdentity) -> None:
        self._own, self._rights = own, rights
        effective, permitted, inheritable = masks
        self._lowered = credentials.pack_capabilities(effective & rights.effective, permitted, inheritable)
        self._uid, self._gid = os.geteuid(), os.getegid()

    def __enter__(self) -> None:
        credentials.setgroups(self._rights.groups)
        credentials.setfsgid(self._rights.gid)
        credentials.setfsuid(self._rights.uid)
        credentials.capset(self._lowered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        credentials.capset(self._own)
        credentials.setfsuid(self._uid)
        credentials.setfsgid(self._gid)
        credentials.setgroups(())


class _AskedThere:
    """The scope of ``killpriv``, created by the thread that enters it."""

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
    """A path to the inode behind fd; also works for an O_PATH fd of a symbolic link."""
    return b"/proc/self/fd/%d" % fd
