"""The tree as seen by a user who owns nothing, is in no group and has no capability: ``Options(as_nobody=True)``.

For showing a tree to an untrusted user, such as root beside a container. Whoever asks, even uid 0 with every
capability, only the permissions for *others* count: a file of mode 0640, or below a directory of mode 0700, cannot be
reached; nothing can be changed (EROFS); set-id bits and file capabilities have no effect; every owner is nobody
(65534). Two independent checks ensure this, so neither a stale cache nor a race opens a gap:

- The *server* makes every system call on the tree with an id that no file has, without groups and without effective
  capabilities. It raises them for three calls that grant nothing: open_by_handle_at(2) of a node that was looked up
  before (as O_PATH), registering a backing file that was found readable, fanotify.
- The *kernel* is told that every file belongs to uid and gid -1, which is mapped in no user namespace. So its own check
  of each access (``default_permissions``) applies the bits for others, and no capability counts on such an inode
  (``capable_wrt_inode_uidgid``), for cached entries too. POSIX ACLs are disabled, since their named users would count
  again; what an ACL gives to others is in the mode.

This works on any backing filesystem. If the server cannot take another id (in a user namespace that maps one id only,
with setgroups denied) it checks the bits for others itself before each call. A program that may be executed but not
read is refused, although a local user could run it.
"""

from __future__ import annotations

import errno
import os
import stat
from _thread import get_ident

from cntr.cntrfs.backing import Caller, Credentials, proc_path
from cntr.cntrfs.core import Core
from cntr.cntrfs.files import DirectoryHandle
from cntr.cntrfs.node import BackingMount, Node, stale
from cntr.cntrfs.xattrs import Xattrs
from cntr.linux import any_thread, credentials
from cntr.linux.file_syscalls import Attributes, as_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from cntr.cntrfs.options import Options

#: In a range from which no program assigns users (systemd's UIDS-GIDS: "unused"), and without the sign bit.
NO_FILES_ID = 0x7FFF_C47A
_UNMAPPED = 0xFFFFFFFF  # make_kuid(9) of it is INVALID_UID in every user namespace; stat(2) shows 65534
_SETID = stat.S_ISUID | stat.S_ISGID
_HIDDEN = (b"security.capability", b"trusted.", b"system.posix_acl_", b"system.nfs4_acl", b"system.richacl")


class NobodyCredentials(Credentials):
    """The calling thread, and those it starts later, are nobody; only ``raised`` restores its rights."""

    def __init__(self) -> None:
        """Drop all rights. Call in the serving thread, before it starts others."""
        effective, permitted, inheritable = credentials.capget()
        self._raised = _Raised(
            credentials.pack_capabilities(effective, permitted, inheritable),
            credentials.pack_capabilities(0, permitted, inheritable),
        )
        # whether the thread has another id; False in a user namespace that maps one id
        self._raised_open = _RaisedOpen(self._raised)
        self.is_other = _become(NO_FILES_ID)
        credentials.capset(credentials.pack_capabilities(0, permitted, inheritable))
        super().__init__()  # records the remaining capabilities as its own

    def be_frugal(self) -> None:
        """It has no capabilities to lower."""

    def as_caller(self, caller: Caller, groups: bool = False, unprivileged: bool = False) -> Credentials:
        """Not used: a nobody's tree is read-only (EROFS)."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def raised(self) -> _Raised:
        """A scope with the server's capabilities, for calls that read nothing of the tree for a client. Not nested."""
        return self._raised

    def reopening(self) -> _RaisedOpen:
        """See ``Credentials.reopening``."""
        return self._raised_open

    def registering(self) -> _Raised:
        """The scope for registering a backing file, which needs CAP_SYS_ADMIN; ``demand_open`` has checked the file."""
        return self._raised


def _become(number: int) -> bool:
    """Set NUMBER as the thread's filesystem ids, and drop its groups; return whether that worked."""
    try:
        credentials.setgroups(())
    except OSError:
        return False
    credentials.setfsgid(number)
    credentials.setfsuid(number)
    return (credentials.setfsuid(_UNMAPPED), credentials.setfsgid(_UNMAPPED)) == (number, number)


class _Raised:
    """The scope of ``raised``; within ``_RaisedOpen`` it changes nothing."""

    def __init__(self, own: bytes, none: bytes) -> None:
        self._own, self._none = own, none
        self.holder = 0  # the thread inside _RaisedOpen: each thread has capabilities of its own

    def __enter__(self) -> None:
        if self.holder != get_ident():
            credentials.capset(self._own)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.holder != get_ident():
            credentials.capset(self._none)


class _RaisedOpen:
    """The scope of ``reopening``. Used by one thread at a time."""

    def __init__(self, raised: _Raised) -> None:
        self._raised = raised

    def __enter__(self) -> None:
        self._raised.__enter__()
        self._raised.holder = get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raised.holder = 0
        self._raised.__exit__(kind, error, trace)


class NobodyCore(Core):
    """A tree served with nobody's rights."""

    credentials: NobodyCredentials

    def __init__(self, root_fd: int, options: Options) -> None:
        """As ``Core``; the calling thread loses its rights on files for good."""
        options.read_only = True
        super().__init__(root_fd, options, NobodyCredentials(), NobodyXattrs)

    # refused operations

    def _demand_search(self, parent_fd: int) -> None:
        if not self.credentials.is_other:
            _demand(self.calls, parent_fd, stat.S_IXOTH)

    def demand_open(self, node: Node, flags: int, mode: int = -1) -> None:
        """Check an open for reading: with passthrough the kernel reads the file without checking permissions again."""
        super().demand_open(node, flags)
        if mode < 0:
            _demand(self.calls, self.fds.fd(node), stat.S_IROTH)
        elif not mode & stat.S_IROTH:
            raise _denied()

    # names

    def lookup(self, parent_id: int, name: bytes, pid: int = 0) -> tuple[Node, Attributes]:
        """LOOKUP, without exported file handles: they would bypass directories."""
        if name in (b".", b".."):
            raise stale()
        self._demand_search(self.fds.fd(self.nodes.get(parent_id)))
        node, attributes = super().lookup(parent_id, name)
        return node, shown(attributes)

    def lookup_entry(self, parent_id: int, name: bytes) -> tuple[int, int, BackingMount, tuple[int, ...]] | None:
        """LOOKUP, as ``Core.lookup_entry``."""
        self._demand_search(self.fds.fd(self.nodes.get(parent_id)))
        found = super().lookup_entry(parent_id, name)
        return found if found is None else (*found[:3], _shown_fields(found[3]))

    def getattr(self, nodeid: int, fh: int | None = None) -> tuple[Node, Attributes]:
        """GETATTR."""
        node, attributes = super().getattr(nodeid, fh)
        return node, shown(attributes)

    def look_at_entry(self, fh: int, name: bytes) -> tuple[Node, Attributes]:
        """READDIRPLUS, as ``Core.look_at_entry``."""
        self._demand_search(self.files.handle(fh).fd)
        node, attributes = super().look_at_entry(fh, name)
        return node, shown(attributes)

    def list_entry(self, directory: DirectoryHandle, name: bytes) -> tuple[int, int, BackingMount, tuple[int, ...]]:
        """READDIRPLUS, as ``Core.list_entry``."""
        self._demand_search(directory.fd)
        found = super().list_entry(directory, name)
        return *found[:3], _shown_fields(found[3])

    # contents

    def open_directory(self, nodeid: int) -> DirectoryHandle:
        """OPENDIR, by inode: a directory may be readable but not searchable."""
        node = self.nodes.get(nodeid)
        fd = self.fds.fd(node)
        _demand(self.calls, fd, stat.S_IROTH)
        return DirectoryHandle(node, self.fds.open_retrying(proc_path(fd), os.O_RDONLY | os.O_DIRECTORY))


class NobodyXattrs(Xattrs):
    """Extended attributes as nobody sees them."""

    def find(self, nodeid: int, name: bytes) -> bytes | None:
        """GETXATTR: ``user.*`` if the file may be read, ``security.*`` as for any user."""
        if name.startswith(_HIDDEN):
            return None
        if name.startswith(b"user."):
            _demand(any_thread, self._nodes.fds.fd(self._nodes.get(nodeid)), stat.S_IROTH)
        return super().find(nodeid, name)

    def names(self, nodeid: int, caller: Caller) -> list[bytes]:
        """LISTXATTR, without the names that nobody may read."""
        names = [os.fsencode(name) for name in os.listxattr(proc_path(self._nodes.fds.fd(self._nodes.get(nodeid))))]
        return [name for name in names if not name.startswith(_HIDDEN)]


def shown(attributes: Attributes) -> Attributes:
    """The attributes shown to clients: owned by nobody, without set-id bits."""
    return as_attributes(_shown_fields(attributes))


def _shown_fields(fields: tuple[int, ...]) -> tuple[int, ...]:
    return (*fields[:4], _UNMAPPED, _UNMAPPED, fields[6] & ~_SETID, *fields[7:])


def _demand(calls: Any, fd: int, bits: int) -> int:
    """Raise EACCES unless the bits for others allow it; return the file's mode. calls: as ``Core.calls``."""
    mode: int = calls.mode_and_attributes(fd)[0]
    if mode & bits != bits:
        raise _denied()
    return mode


def _denied() -> OSError:
    return OSError(errno.EACCES, os.strerror(errno.EACCES))
