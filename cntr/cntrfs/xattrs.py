"""Extended attributes of a served tree's files, xattr(7)."""

from __future__ import annotations

import errno
import os

from cntr.cntrfs.backing import NOBODYS_GROUP, Caller, Credentials, proc_path
from cntr.linux import credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.nodes import NodeTable
    from cntr.cntrfs.options import Options

_ACL_PREFIX = b"system.posix_acl_"
_FILE_CAPABILITIES = b"security.capability"


class Xattrs:
    """The four operations on extended attributes."""

    def __init__(self, nodes: NodeTable, options: Options, credentials: Credentials) -> None:
        """credentials: of the serving thread."""
        self._nodes = nodes
        self._options = options
        self._credentials = credentials

    def get(self, nodeid: int, name: bytes) -> bytes:
        """GETXATTR. ENODATA for an ACL on a filesystem without ACLs: the kernel takes EOPNOTSUPP for a refusal."""
        value = self.find(nodeid, name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def find(self, nodeid: int, name: bytes) -> bytes | None:
        """GETXATTR; None for ENODATA. That is the usual answer, and raising an exception would take longer."""
        node = self._nodes.get(nodeid)
        if name == _FILE_CAPABILITIES and node.mount.forbids & os.ST_NOSUID:
            return None
        try:
            # Through the open file if it was just created: the kernel asks for this before each write and chown.
            return os.getxattr(node.lent_fd if node.lent_fd >= 0 else proc_path(self._nodes.fds.fd(node)), name)
        except OSError as error:
            if error.errno == errno.ENODATA or (error.errno == errno.EOPNOTSUPP and name.startswith(_ACL_PREFIX)):
                return None
            raise

    def names(self, nodeid: int, caller: Caller) -> list[bytes]:
        """LISTXATTR; trusted.* is visible to root only (xattr(7))."""
        node = self._nodes.get(nodeid)
        names = [os.fsencode(name) for name in os.listxattr(proc_path(self._nodes.fds.fd(node)))]
        if node.mount.forbids & os.ST_NOSUID and _FILE_CAPABILITIES in names:
            names.remove(_FILE_CAPABILITIES)
        if not any(name.startswith(b"trusted.") for name in names) or caller.is_capable(credentials.CAP_SYS_ADMIN):
            return names
        return [name for name in names if not name.startswith(b"trusted.")]

    def set(
        self, nodeid: int, name: bytes, value: bytes, flags: int, caller: Caller | None, kill_sgid: bool = False
    ) -> None:
        """SETXATTR with XATTR_CREATE or XATTR_REPLACE.

        Setting an ACL clears S_ISGID unless the caller is in the file's group or has CAP_FSETID. Either the kernel has
        decided (kill_sgid), or the caller is given and the backing filesystem decides as for them.
        """
        self._options.demand_writable()
        path = proc_path(self._nodes.fds.fd(self._nodes.get(nodeid)))
        if kill_sgid:
            caller = Caller(65534, NOBODYS_GROUP, 0)
        if name.startswith(_ACL_PREFIX) and caller is not None and caller.uid != 0:
            with self._credentials.as_caller(caller, groups=True):
                os.setxattr(path, name, value, flags)
        else:
            os.setxattr(path, name, value, flags)

    def remove(self, nodeid: int, name: bytes) -> None:
        """REMOVEXATTR."""
        self._options.demand_writable()
        os.removexattr(proc_path(self._nodes.fds.fd(self._nodes.get(nodeid))), name)
