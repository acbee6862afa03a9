"""The backing mounts of a served tree, and the node ids of their files."""

from __future__ import annotations

import errno
import os

from cntr.cntrfs.copyup import OVERLAYFS_MAGIC
from cntr.cntrfs.handles import O_PATH, HandleOpener
from cntr.cntrfs.node import AUTOFS_MAGIC, ENTRY, INO_BITS, ROOT_ID, SYNTHETIC, BackingMount, Node, generation_of, stale
from cntr.linux import file_syscalls, syscalls
from cntr.linux.file_syscalls import Attributes, Handle, as_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from typing import Any

    from cntr.cntrfs.fds import BoundedFds
    from cntr.cntrfs.node import Node

RESTRICTIONS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
_INO_LIMIT = 1 << INO_BITS
_MOUNT_LIMIT = 1 << 14


class RemoteMount(OSError):
    """The mounted filesystem must be asked for attributes, which may block. EBUSY, as for whoever would remove the
    mount point.
    """

    def __init__(self) -> None:
        """No more is known."""
        super().__init__(errno.EBUSY, os.strerror(errno.EBUSY))


class Mounts:
    """All backing mounts, in the order in which they were found."""

    calls: Any = file_syscalls

    def __init__(self, fds: BoundedFds, raised: contextlib.AbstractContextManager[None]) -> None:
        """raised: the scope to open by handle in."""
        self._fds = fds
        self._opener = HandleOpener(raised)
        self.open_by_ino = self._opener.by_ino
        self.all: list[BackingMount] = []
        self.by_id: dict[tuple[int, int, int], BackingMount] = {}  # by mount id and device: major, minor
        self._synthetic = SYNTHETIC
        self.any_remote = False  # access to such a mount may block
        self.may_wait = True  # whether a lookup may cross into a possibly remote mount
        self.own_device = 0  # device of the FUSE mount, which may be mounted inside its own tree
        self.on_new_mount: Callable[[BackingMount], None] = lambda mount: None

    def of(self, attributes: Attributes) -> BackingMount:
        """The mount of a file."""
        key = attributes.mnt_id, attributes.dev_major, attributes.dev_minor
        mount = self.by_id.get(key)
        if mount is None:
            dev = os.makedev(attributes.dev_major, attributes.dev_minor)
            index = len(self.all)
            base = index << INO_BITS if index < _MOUNT_LIMIT else SYNTHETIC
            mount = BackingMount(attributes.mnt_id, dev, base, index)
            mount.copies_up = any(other.copies_up for other in self.all if other.mnt_id == mount.mnt_id)
            self.all.append(mount)
            if index == 0:  # reserved node ids: such an inode gets a synthetic id
                mount.aliases = {0: -1, ROOT_ID: -1}
            self.by_id[key] = mount
        return mount

    def fields(self, mount: BackingMount, fd: int, name: bytes) -> tuple[int, ...] | None:
        """``statx_fields`` of NAME in the directory FD of the mount. Raises OSError (ELOOP: our own FUSE mount is
        there).

        Our own mount is never asked for attributes: the server would wait for itself. So the first statx(2) asks no
        server; if another mount is found, it is asked in a second one. Raises RemoteMount if that may block and
        ``may_wait`` is False.
        """
        fields: tuple[int, ...] | None = self.calls.statx_fields(fd, name, mount.entry_flags)
        if fields is None or fields[23] == mount.mnt_id:
            return fields
        if self.own_device and os.makedev(fields[21], fields[22]) == self.own_device:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not self.may_wait:
            other = self.by_id.get((fields[23], fields[21], fields[22]))
            if other is None or other.is_remote:
                raise RemoteMount
        fields = self.calls.statx_fields(fd, name)
        return fields

    def open_directory(self, node: Node, fd: int, flags: int) -> int:
        """open(2) of the directory NODE behind FD. Where autofs waits for somebody to walk in, by its name, as one does."""
        if node.mount.magic != AUTOFS_MAGIC or not node.name:
            return os.open(b".", flags, dir_fd=fd)
        path = b"../" + node.name + b"/."  # what is at the name now need not be the directory that was looked up
        return syscalls.openat2(fd, path, flags, syscalls.RESOLVE_NO_SYMLINKS)

    def walked_in(self, node: Node, fd: int) -> int:
        """FD, when somebody asks for a name in the directory NODE behind it. ESTALE: autofs has mounted there: look again."""
        if node.mount.magic == AUTOFS_MAGIC and node.name:
            opened = self.open_directory(node, fd, os.O_PATH | os.O_DIRECTORY)
            mounted = self.calls.statx(opened).mnt_id != node.mount.mnt_id
            os.close(opened)
            if mounted:
                raise stale()
        return fd

    def look(self, mount: BackingMount, fd: int, name: bytes) -> Attributes:
        """The same as ``Attributes``. Raises OSError (ENOENT)."""
        fields = self.fields(mount, fd, name)
        if fields is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return as_attributes(fields)

    def nodeid(self, mount: BackingMount, ino: int) -> int:
        """The node id of the file with this inode number."""
        nodeid = mount.aliases.get(ino)
        if nodeid is None and ino < _INO_LIMIT and mount.base != SYNTHETIC:
            return mount.base | ino
        if nodeid is None or nodeid == -1:
            nodeid = mount.aliases[ino] = self.unused_id()
        return nodeid

    def unused_id(self) -> int:
        """A node id that no inode number yields."""
        self._synthetic += 1
        return self._synthetic

    def shown_ino(self, mount: BackingMount, ino: int) -> int:
        """The inode number shown to clients: the backing one, made unique across submounts.

        A FUSE mount has one st_dev, and two files with the same (st_dev, st_ino) would be taken for hard links.
        """
        return mount.base | ino if ino < _INO_LIMIT and mount.base != SYNTHETIC else ino

    def probe_handles(self, mount: BackingMount, fd: int, name: bytes) -> None:
        """Find out whether files on this mount can be opened by handle: this needs filesystem support and
        CAP_DAC_READ_SEARCH.
        """
        mount.handles = False
        try:
            path_fd = self._fds.retrying(lambda: os.open(name, O_PATH, dir_fd=fd) if name else os.dup(fd))
            try:
                mount.take_magic(file_syscalls.filesystem_magic(path_fd))
                mount.copies_up = mount.magic == OVERLAYFS_MAGIC
                self.any_remote = self.any_remote or mount.is_remote
                if mount.mnt_id and not mount.is_remote:  # a directory that is not a mount point has known properties
                    mount.entry_flags = ENTRY | file_syscalls.AT_STATX_DONT_SYNC
                mount.forbids = os.fstatvfs(path_fd).f_flag & RESTRICTIONS
            finally:
                os.close(path_fd)
            handle = file_syscalls.name_to_handle(fd, name)
            mount_fd = self.fd(mount)
            os.close(self._fds.retrying(lambda: self._opener.open(mount_fd, handle)))
        except OSError:
            if mount.node and not mount.node.is_directory:
                self.on_new_mount(mount)
            return
        mount.handles = True
        mount.any_generation = self._opener.matches_any_generation(mount_fd, handle)
        self.on_new_mount(mount)

    def note_generation(self, node: Node) -> None:
        """Now that there is a file with a generation: need others on its mount be asked for theirs?"""
        mount = node.mount
        if mount.any_generation is None and (handle := node.handle) is not None:
            mount.any_generation = self._opener.matches_any_generation(self.fd(mount), handle)
            if mount.any_generation:
                node.generation = generation_of(node.birth)

    def fd(self, mount: BackingMount) -> int:
        """An fd on the mount (not O_PATH) for open_by_handle_at(2)."""
        if mount.fd < 0:
            if mount.node is None:
                raise stale()
            if not mount.node.is_directory:
                raise OSError(errno.EOPNOTSUPP, "a file is mounted here: no directory to open handles by")
            with_path = b"/proc/self/fd/%d" % self._fds.fd(mount.node)
            mount.fd = self._fds.retrying(lambda: self._opener.open_mount(with_path))
        return mount.fd

    def open_by_handle(self, mount: BackingMount, handle: Handle, shared: bool = True) -> int:
        """An O_PATH fd of a file of the mount. ESTALE: gone. shared: see ``file_syscalls.open_by_handle``."""
        return self._opener.open(self.fd(mount), handle, shared)

    def close(self) -> None:
        """Close the fds of all mounts."""
        for mount in self.all:
            if mount.fd >= 0:
                os.close(mount.fd)
                mount.fd = -1
