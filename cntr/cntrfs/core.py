"""The filesystem's operations, synchronous and independent of a binding: one method per operation of the kernel.

A binding passes node ids, names as bytes and a ``Caller``, and gets nodes, ``Attributes`` (struct statx) or plain values, and calls
``nodes.trim()`` between operations. Every failure is an OSError whose errno is the answer; ``log.errno_of`` logs anything else and
turns it into EIO, because an error in one operation must not end the mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cntr.cntrfs.backing import Caller, Credentials, opens_by_handle, proc_path
from cntr.cntrfs.fds import LARGE_BLOCKS
from cntr.cntrfs.files import FMODE_EXEC, DirectoryHandle, OpenFiles
from cntr.cntrfs.handles import O_PATH
from cntr.cntrfs.node import BackingMount, Node, stale
from cntr.cntrfs.nodes import NodeTable
from cntr.cntrfs.options import Options
from cntr.cntrfs.xattrs import Xattrs
from cntr.linux import file_syscalls
from cntr.linux.file_syscalls import Attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from cntr.cntrfs.changes import Changes

_OMIT = (0, file_syscalls.UTIME_OMIT)
_UNCHANGED = 0xFFFFFFFF


class Core:
    """One served tree."""

    calls: Any = file_syscalls  # statx(2), for the thread that uses it

    def __init__(
        self, root_fd: int, options: Options, credentials: Credentials | None = None, xattrs: type[Xattrs] = Xattrs
    ) -> None:
        """root_fd: of the tree's root directory; the core owns it. credentials: of the serving thread. Sets the umask to 0."""
        self.options = options
        self.credentials = credentials or Credentials()
        self.nodes = NodeTable(root_fd, options.max_fds, self.credentials.raised())
        self.fds, self.mounts = self.nodes.fds, self.nodes.mounts
        self.mounts.own_device = options.own_device
        if options.root_kept:
            self.nodes.root.mount.forbids = 0
        Caller.retrying = self.fds.retrying
        self.files = OpenFiles(self.nodes, options)
        self.xattrs = xattrs(self.nodes, options, self.credentials)
        os.umask(0)

    def close(self) -> None:
        """Close every fd of the tree."""
        self.files.close_all()
        self.nodes.close()

    # looking up

    def lookup(self, parent_id: int, name: bytes, pid: int = 0) -> tuple[Node, Attributes]:
        """LOOKUP by thread PID: the node of a name, with one lookup counted. ``.`` and ``..`` come from file handles."""
        if name in (b".", b".."):
            if not opens_by_handle(pid):
                raise stale()
            node = self._lookup_dots(parent_id, name)
            attributes = self.calls.statx(self.fds.fd(node))
            if not attributes.nlink:  # the kernel has forgotten the node; its FORGET is still on the way
                raise stale()
        else:
            parent = self.nodes.get(parent_id)
            parent_fd = self.mounts.walked_in(parent, self.fds.fd(parent))
            attributes = self.mounts.look(parent.mount, parent_fd, name)
            node = self.nodes.see(attributes, parent, parent_fd, name)
        node.lookups += 1
        return node, attributes

    def lookup_entry(self, parent_id: int, name: bytes) -> tuple[int, int, BackingMount, tuple[int, ...]] | None:
        """LOOKUP: (node id, generation, mount, statx fields) of a name other than . and .., with one lookup counted.

        None if there is no such name.
        """
        parent = self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        fields = self.mounts.fields(parent.mount, parent_fd, name)
        if fields is None:
            return None
        return *self.nodes.listed(fields, parent, parent_fd, name), fields

    def _lookup_dots(self, nodeid: int, name: bytes) -> Node:
        node = self.nodes.known(nodeid) or self.nodes.revive(nodeid)
        if name == b"." or node is self.nodes.root:
            return node
        fd = self.fds.fd(node)
        return self.nodes.see(self.calls.statx(fd, b".."), node, fd, b"..")

    def getattr(self, nodeid: int, fh: int | None = None) -> tuple[Node, Attributes]:
        """GETATTR, on the open file if one is given."""
        handle = self.files.handles.get(fh) if fh is not None else None
        if handle is not None and handle.fd >= 0:
            return handle.node, self.calls.statx(handle.fd)
        node = self.nodes.get(nodeid)
        return node, self.calls.statx(self.fds.fd(node))

    def readlink(self, nodeid: int) -> bytes:
        """READLINK."""
        return os.readlink(b"", dir_fd=self.fds.fd(self.nodes.get(nodeid)))

    def statfs(self, nodeid: int) -> os.statvfs_result:
        """STATFS of the filesystem that the node is on."""
        return os.fstatvfs(self.fds.fd(self.nodes.get(nodeid)))

    # changing attributes

    def setattr(self, nodeid: int, changes: Changes, fh: int | None = None) -> tuple[Node, Attributes]:
        """SETATTR: size, then owner, then mode (changing the owner clears set-id bits), then times."""
        self.options.demand_writable()
        node = self.nodes.get(nodeid)
        handle = self.files.handles.get(fh) if fh is not None else None
        fd = handle.fd if handle is not None and handle.fd >= 0 else self.fds.fd(node)
        if changes.size is not None:
            # Through the open file if there is one: ftruncate(2) sets mtime even if the size stays the same.
            writable = handle is not None and handle.writable
            self._truncate(self.files.fd(handle) if handle is not None and writable else None, changes, fd)
        if changes.uid is not None or changes.gid is not None:
            uid = _UNCHANGED if changes.uid is None else changes.uid
            file_syscalls.chown(fd, uid, _UNCHANGED if changes.gid is None else changes.gid)
        if changes.mode is not None:
            file_syscalls.chmod(fd, changes.mode & 0o7777)
        if changes.atime is not None or changes.mtime is not None:
            file_syscalls.utimens(fd, changes.atime or _OMIT, changes.mtime or _OMIT)
        elif changes.size is None and changes.uid is None and changes.gid is None and changes.mode is None:
            file_syscalls.chown(fd, _UNCHANGED, _UNCHANGED)  # a client's chown(-1, -1), which moves ctime
        return node, self.calls.statx(fd)

    def _truncate(self, fd: int | None, changes: Changes, node_fd: int) -> None:
        with self.credentials.killpriv(node_fd, changes.killpriv):
            os.truncate(proc_path(node_fd) if fd is None else fd, changes.size or 0)

    # creating

    def _made(self, parent: Node, parent_fd: int, name: bytes) -> tuple[Node, Attributes]:
        node = self.nodes.see(attributes := self.mounts.look(parent.mount, parent_fd, name), parent, parent_fd, name)
        node.lookups += 1
        return node, attributes

    def mknod(self, parent_id: int, name: bytes, mode: int, device: int, caller: Caller) -> tuple[Node, Attributes]:
        """MKNOD: a regular file, FIFO, socket or device; device as makedev(3) makes it."""
        self.options.demand_writable()
        parent = self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        with self.credentials.as_caller(caller, groups=bool(mode & stat.S_ISGID)):
            file_syscalls.mknodat(parent_fd, name, mode, device)
        return self._made(parent, parent_fd, name)

    def mkdir(self, parent_id: int, name: bytes, mode: int, caller: Caller) -> tuple[Node, Attributes]:
        """MKDIR."""
        self.options.demand_writable()
        parent = self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        with self.credentials.as_caller(caller):
            os.mkdir(name, mode, dir_fd=parent_fd)
        return self._made(parent, parent_fd, name)

    def symlink(self, parent_id: int, name: bytes, target: bytes, caller: Caller) -> tuple[Node, Attributes]:
        """SYMLINK: NAME leads to TARGET."""
        self.options.demand_writable()
        parent = self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        with self.credentials.as_caller(caller):
            os.symlink(target, name, dir_fd=parent_fd)
        return self._made(parent, parent_fd, name)

    def link(self, nodeid: int, parent_id: int, name: bytes) -> tuple[Node, Attributes]:
        """LINK: add a name for the node's file."""
        self.options.demand_writable()
        node, parent = self.nodes.get(nodeid), self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        fd = self.fds.fd(node)
        try:
            file_syscalls.linkat(fd, b"", parent_fd, name, file_syscalls.AT_EMPTY_PATH)
        except FileNotFoundError:  # AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH, and fails for an O_TMPFILE file
            file_syscalls.linkat(
                file_syscalls.AT_FDCWD, proc_path(fd), parent_fd, name, file_syscalls.AT_SYMLINK_FOLLOW
            )
        self.fds.unpin(node)
        self.nodes.moved(node, parent, name)
        node.lookups += 1
        return node, self.calls.statx(fd)

    # removing and renaming

    def unlink(self, parent_id: int, name: bytes) -> None:
        """UNLINK; a file that is still open stays reachable."""
        self._remove(parent_id, name, os.unlink)

    def rmdir(self, parent_id: int, name: bytes) -> None:
        """RMDIR; a directory that is some process's working directory stays reachable."""
        self._remove(parent_id, name, os.rmdir)

    def _remove(self, parent_id: int, name: bytes, remove: Callable[..., None]) -> None:
        self.options.demand_writable()
        parent = self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        victim = self._keep_reachable(parent, parent_fd, name)
        try:
            remove(name, dir_fd=parent_fd)
        except OSError:
            if victim is not None:
                self.fds.unpin(victim)
            raise

    def _keep_reachable(self, parent: Node, parent_fd: int, name: bytes) -> Node | None:
        """NAME is removed: if it may be the only way to a file the kernel knows, keep an fd of the file instead."""
        attributes = self.mounts.look(parent.mount, parent_fd, name)
        return self.keep_reachable(attributes, parent, name, lambda: os.open(name, O_PATH, dir_fd=parent_fd))

    def keep_reachable(
        self, attributes: Attributes, parent: Node, name: bytes, opener: Callable[[], int]
    ) -> Node | None:
        """The file NAME of parent loses this name: return its node, pinned. opener: opens an O_PATH fd of the file."""
        node = self.nodes.find(attributes, parent, name)
        if node is None or (node.pinned and not self.fds.is_held(node)):
            return None
        if attributes.nlink > 1 and not node.is_directory and node.handle is not None:
            return None
        if node.fd < 0:
            self.fds.adopt(node, self.fds.retrying(opener))
        self.fds.pin(node, is_small=not node.users and attributes.blocks < LARGE_BLOCKS)
        return node

    def rename(
        self, parent_id: int, name: bytes, new_parent_id: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        """RENAME with the flags of renameat2(2); a whiteout belongs to the caller."""
        self.options.demand_writable()
        old_parent, new_parent = self.nodes.get(parent_id), self.nodes.get(new_parent_id)
        old_fd, new_fd = self.fds.fd(old_parent), self.fds.fd(new_parent)
        if old_parent.fd < 0:  # fds are so scarce that opening the second closed the first
            old_fd = self.fds.fd(old_parent)
        victim = None
        if not flags & (file_syscalls.RENAME_EXCHANGE | file_syscalls.RENAME_NOREPLACE):
            with contextlib.suppress(FileNotFoundError):
                victim = self._keep_reachable(new_parent, new_fd, new_name)
        try:
            if flags & file_syscalls.RENAME_WHITEOUT:
                with self.credentials.as_caller(caller):
                    file_syscalls.renameat2(old_fd, name, new_fd, new_name, flags)
            else:
                file_syscalls.renameat2(old_fd, name, new_fd, new_name, flags)
        except OSError:
            if victim is not None:
                self.fds.unpin(victim)
            raise
        self._renamed(new_parent, new_fd, new_name, victim)
        if flags & file_syscalls.RENAME_EXCHANGE:
            self._renamed(old_parent, old_fd, name, None)

    def _renamed(self, parent: Node, parent_fd: int, name: bytes, victim: Node | None) -> None:
        """Record the new name, if nodes are reopened by name."""
        try:
            node = self.nodes.renamed(self.mounts.look(parent.mount, parent_fd, name), parent, name)
        except OSError:
            return  # already gone again
        if node is not None and node is victim:
            self.fds.unpin(node)  # two names of one file: rename does nothing

    # files: creating and opening in one

    def create(
        self, parent_id: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Node, Attributes, int]:
        """CREATE: node, attributes and the open file's handle."""
        self.options.demand_writable()
        parent = self.nodes.get(parent_id)
        parent_fd = self.fds.fd(parent)
        backing_flags = self.files.backing_flags(flags) & ~os.O_TRUNC
        try:
            with self.credentials.as_caller(caller, groups=bool(mode & stat.S_ISGID)):
                fd = self.fds.retrying(
                    lambda: os.open(name, backing_flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=parent_fd)
                )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._open_appeared(parent, parent_fd, name, flags, caller)
        try:
            attributes = self.calls.statx(fd)
            node = self.nodes.see(attributes, parent, parent_fd, name)
        except BaseException:
            os.close(fd)
            raise
        node.lookups += 1
        node.lent_fd = fd
        return node, attributes, self.files.add(node, fd, flags)

    def _open_appeared(
        self, parent: Node, parent_fd: int, name: bytes, flags: int, caller: Caller
    ) -> tuple[Node, Attributes, int]:
        """The file was created behind the mount, so the kernel has not checked permissions: check them as the caller."""
        attributes = self.calls.statx(parent_fd, name)
        if not stat.S_ISREG(attributes.mode):
            raise stale()  # the kernel looks it up again and learns its type
        with self.credentials.as_caller(caller, groups=True, unprivileged=True):
            opened = self.files.backing_flags(flags) | flags & os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = self.fds.retrying(lambda: os.open(name, opened, dir_fd=parent_fd))
        attributes = self.calls.statx(fd)
        node = self.nodes.see(attributes, parent, parent_fd, name)
        node.lookups += 1
        return node, attributes, self.files.add(node, fd, flags)

    # files and directories: opening

    def demand_open(self, node: Node, flags: int, mode: int = -1) -> None:
        """Raise OSError if a client's open(2) with FLAGS is refused for any file: a read-only tree, noexec.

        mode: st_mode if the server has just read it.
        """
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self.options.demand_writable()
            self.files.demand_not_run(node, flags)
        if flags & FMODE_EXEC and node.mount.forbids & os.ST_NOEXEC:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def open(self, nodeid: int, flags: int, caller: Caller) -> int:
        """OPEN; O_TRUNC clears set-id bits, unless the caller has CAP_FSETID."""
        node = self.nodes.get(nodeid)
        if node.kind != stat.S_IFREG:  # the kernel opens regular files only, unless the inode number was reused
            raise stale()  # opening a FIFO would block
        self.demand_open(node, flags)
        node_fd = self.fds.fd(node)
        rights = caller.rights() if node.mount.is_pseudo and not self.options.as_nobody else None
        killpriv = caller if flags & os.O_TRUNC else None
        with self.credentials.acting(rights) if rights else self.credentials.killpriv(node_fd, killpriv):
            fd = self.files.open_file(proc_path(node_fd), self.files.backing_flags(flags), flags)
        fh = self.files.add(node, fd, flags, rights)
        self.files.note_append_only(self.files.handles[fh])
        return fh

    # directories

    def opendir(self, nodeid: int) -> int:
        """OPENDIR."""
        return self.files.enter(self.open_directory(nodeid))

    def open_directory(self, nodeid: int) -> DirectoryHandle:
        """Open the directory for reading; the caller closes its fd."""
        node = self.nodes.get(nodeid)
        parent_fd = self.fds.fd(node)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        quiet = os.O_NOATIME if self.options.leaves_directory_atime() else 0

        def opener() -> int:
            try:
                return self.mounts.open_directory(node, parent_fd, flags | quiet)
            except PermissionError:  # O_NOATIME needs ownership or CAP_FOWNER
                return self.mounts.open_directory(node, parent_fd, flags)

        return DirectoryHandle(node, self.fds.retrying(opener))

    def listing(self, nodeid: int) -> DirectoryHandle:
        """The state of a directory that is read without being opened."""
        return self.files.listing(self.nodes.get(nodeid), self.open_directory)

    def entries(self, directory: DirectoryHandle, offset: int) -> Iterator[file_syscalls.DirectoryEntry]:
        """READDIR; see ``DirectoryHandle.entries``."""
        return directory.entries(offset)

    def look_at_entry(self, fh: int, name: bytes) -> tuple[Node, Attributes]:
        """READDIRPLUS: node and attributes of an entry. The binding counts the lookup once the entry fits in the buffer."""
        handle = self.files.handle(fh)
        attributes = self.mounts.look(handle.node.mount, handle.fd, name)
        return self.nodes.see(attributes, handle.node, handle.fd, name), attributes

    def list_entry(self, directory: DirectoryHandle, name: bytes) -> tuple[int, int, BackingMount, tuple[int, ...]]:
        """READDIRPLUS: (node id, generation, mount, statx fields) of an entry, with one lookup counted."""
        parent, fd = directory.node, directory.fd
        fields = file_syscalls.statx_fields(fd, name, parent.mount.entry_flags)
        if fields is None or fields[23] != parent.mount.mnt_id:
            fields = self.mounts.look(parent.mount, fd, name)  # a mount point, or removed
        return *self.nodes.listed(fields, parent, fd, name), fields

    def tmpfile(self, parent_id: int, flags: int, mode: int, caller: Caller) -> tuple[Node, Attributes, int]:
        """TMPFILE: open(2) with O_TMPFILE. The file has no name, so its fd is kept until the kernel forgets it."""
        self.options.demand_writable()
        parent_fd = self.fds.fd(self.nodes.get(parent_id))
        wanted = self.files.backing_flags(flags) | os.O_TMPFILE | flags & os.O_EXCL
        with self.credentials.as_caller(caller, groups=bool(mode & 0o2000)):
            fd = self.fds.retrying(lambda: os.open(b".", wanted, mode, dir_fd=parent_fd))
        attributes = self.calls.statx(fd)
        node = self.nodes.see(attributes, self.nodes.root, fd, b"")
        self.fds.pin(node, self.fds.open_retrying(proc_path(fd), os.O_PATH))
        node.lookups += 1
        return node, attributes, self.files.add(node, fd, flags)
