"""``--share PATH[:rw]``: files and directories of the caller, mounted in a session at their own paths.

The mount is idmapped: the session's user takes the place of PATH's owner, and every other owner becomes nobody. A
session shown alice's directory writes files of alice's, whatever its uid. Read-only unless asked; never with set-id
bits or devices.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.attach import places, steps
from cntr.errors import CntrError, printable
from cntr.linux import attributes, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit.policy import Policy

RESERVED = ("/", "/proc", "/sys", "/dev", "/etc", "/run")


class Share:
    """One share: a detached, protected clone, to be mounted at PATH; named: as it was given, perhaps by a link."""

    __slots__ = ("is_dir", "named", "note", "path", "tree_fd")

    def __init__(self, word: str, uid: int, gid: int, base: str, policy: Policy | None = None) -> None:
        """word: PATH or PATH:rw; uid, gid: the session's, in the caller's ids; base: where the container's tree is;
        policy: decides what may be shared. Raises CntrError.
        """
        path, colon, mode = word.rpartition(":")
        writable = bool(colon) and mode == "rw"
        if not colon or mode not in ("rw", "ro"):
            path = word
        if not path:
            raise CntrError("--share: an empty path", "`.` is this directory")
        self.path, self.named = os.path.realpath(path), os.path.abspath(path)
        self.note = ""
        if os.path.commonpath((self.path, base)) in (self.path, base) and self.path != "/":
            raise CntrError(
                f"--share {printable(word)}: the container's tree is at {base}, which it would cover",
                "share a directory below or beside it, or set CNTR_BASE_DIR to another place",
            )
        if self.path in RESERVED:
            raise CntrError(
                f"--share {printable(word)}: {printable(self.path)} is the session's own",
                "share a file or a directory below it; `--tools host:all` brings the whole host",
            )
        try:
            fd = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                if policy:
                    policy.check_share(self.path, status.st_uid)
                self.is_dir = stat.S_ISDIR(status.st_mode)
                self.tree_fd = syscalls.open_tree(fd, "", places.CLONE)
            finally:
                os.close(fd)
            self._protect(status, uid, gid, writable)
        except OSError as error:
            raise CntrError(
                f"--share {printable(word)}: {error.strerror}",
                "PATH is a file or directory of this machine; PATH:rw to write",
            ) from None

    def _protect(self, status: os.stat_result, uid: int, gid: int, writable: bool) -> None:
        flags = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        flags |= 0 if writable else syscalls.MOUNT_ATTR_RDONLY
        try:
            users = namespaces.mapped(f"{status.st_uid} {uid} 1", f"{status.st_gid} {gid} 1")
            try:
                attributes.add(self.tree_fd, flags, users)
            finally:
                os.close(users)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            attributes.add(self.tree_fd, flags)
            self.note = f"--share {printable(self.path)}: its file system can't be idmapped: ids are as they are"

    def mount(self, progress: steps.Progress, own_fd: int) -> None:
        """Mount it at PATH. own_fd: of the session's own tmpfs. Raises OSError."""
        progress.now = steps.SHARES
        places.place(os.dup(self.tree_fd), self.path, is_dir=self.is_dir, own_fd=own_fd)
        if self.named != self.path and own_fd >= 0 and not os.path.lexists(self.named):
            self._link(own_fd)

    def _link(self, own_fd: int) -> None:
        """Make the link by which it was named, in the session's own file system. Raises OSError."""
        parent, name = os.path.split(self.named)
        if not os.path.lexists(parent):
            places.make(parent, is_dir=True, own_fd=own_fd)
        fd = places.open_inside(parent, os.O_DIRECTORY)
        try:
            if os.fstat(fd).st_dev == os.fstat(own_fd).st_dev:
                os.symlink(self.path, name, dir_fd=fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the fd."""
        os.close(self.tree_fd)
