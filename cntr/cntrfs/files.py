"""Operations on open files and directories: one backing fd per open, with that open's own flags."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from cntr.cntrfs.backing import AS_IS, STRIPPED, Caller, Credentials, proc_path
from cntr.cntrfs.node import Node, Slot, stale
from cntr.cntrfs.nodes import NodeTable
from cntr.cntrfs.options import Options
from cntr.linux import file_syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator


_LISTINGS = 32  # directories being read at once whose place is remembered
_FMODE_EXEC = 0x20  # linux/fs.h: the kernel opens it to run it; open(2) does not let it through
_SETID = stat.S_ISUID | stat.S_ISGID
_NOT_WRITABLE_ANY_MORE = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ETXTBSY)


class FileHandle:
    """An open file or directory. ``fd`` is -1 while nothing needed one: the kernel does the reading and writing."""

    __slots__ = ("append", "fd", "flags", "node", "passthrough", "refusal", "uncached", "writable")

    def __init__(self, node: Node, fd: int, flags: int) -> None:
        """flags: of the client's open(2)."""
        self.node = node
        self.fd = fd
        self.flags = flags
        self.append = bool(flags & os.O_APPEND)
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.passthrough = False  # the kernel reads and writes the backing file itself
        self.uncached = False  # the kernel must not collect its writes
        self.refusal: OSError | None = None  # fd is for reading only: the file can't be opened for writing any more


class DirectoryHandle(FileHandle):
    """An open directory, and how far it was read."""

    __slots__ = ("index", "pending", "position")

    def __init__(self, node: Node, fd: int) -> None:
        """pending: read from the directory; what follows index is not yet handed out."""
        super().__init__(node, fd, os.O_RDONLY)
        self.pending: list[file_syscalls.DirectoryEntry] = []
        self.index = 0
        self.position = 0


class FileOperations:
    """The part of the core that works on handles."""

    options: Options
    credentials: Credentials
    nodes: NodeTable
    handles: dict[int, FileHandle]
    last_handle: int
    listings: dict[int, DirectoryHandle]

    def demand_writable(self) -> None:
        """EROFS where the tree is served read-only, whatever the mount's flags are: a client's root can change those."""
        if self.options.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def demand_open(self, node: Node, flags: int) -> None:
        """What a client's open(2) with FLAGS may be refused for, whatever the file is like: a read-only tree, noexec."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self.demand_writable()
        if flags & _FMODE_EXEC and node.slot.forbids & os.ST_NOEXEC:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def backing_flags(self, flags: int) -> int:
        """The flags to open a backing file with for a client's open(2) FLAGS.

        With the kernel's writeback cache a partial page is read before it is written: O_WRONLY becomes O_RDWR.
        """
        wanted = flags & ~(STRIPPED | _FMODE_EXEC) | os.O_CLOEXEC
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self.demand_writable()
        if self.options.writeback and flags & os.O_ACCMODE == os.O_WRONLY:
            wanted = wanted & ~os.O_ACCMODE | os.O_RDWR
        return wanted

    def add_file(self, node: Node, fd: int, flags: int) -> int:
        """Enter an open backing file (fd -1: opened when first needed); returns the handle's number."""
        return self._add(FileHandle(node, fd, flags))

    def _add(self, handle: FileHandle) -> int:
        number = self.last_handle = self.last_handle + 1
        self.handles[number] = handle
        handle.node.users += 1
        if handle.node.slot.copies_up:
            self.nodes.hold(handle.node)
        return number

    def file_fd(self, handle: FileHandle) -> int:
        """The handle's own fd, opened now if it has none yet."""
        if handle.fd < 0:
            path = proc_path(self.nodes.fd(handle.node))
            try:
                handle.fd = self.open_file(path, self.backing_flags(handle.flags) & ~os.O_TRUNC, handle.flags)
            except OSError as error:
                if not handle.writable or error.errno not in _NOT_WRITABLE_ANY_MORE:
                    raise
                # It was writable when the client opened it (chattr +i): what needs no writing goes on.
                handle.fd = self.nodes.open_retrying(path, os.O_RDONLY)
                handle.refusal = error
        return handle.fd

    def writing_fd(self, handle: FileHandle) -> int:
        """``file_fd`` to write by; the error that opening it for writing met, where it had to be opened anew and can't be."""
        fd = self.file_fd(handle)
        if handle.refusal is not None:
            raise OSError(handle.refusal.errno, os.strerror(handle.refusal.errno or 0))
        return fd

    def open(self, nodeid: int, flags: int, killer: Caller | None = None) -> int:
        """OPEN: O_TRUNC by the killer, a caller without CAP_FSETID, clears set-id bits."""
        node = self.nodes.get(nodeid)
        if node.kind != stat.S_IFREG:  # the kernel asks for no other, unless the inode number is another file's now
            raise stale()  # a FIFO would be waited for
        self.demand_open(node, flags)
        node_fd = self.nodes.fd(node)
        path = proc_path(node_fd)
        wanted = self.backing_flags(flags)
        with self.killing(node_fd, killer if flags & os.O_TRUNC else None):
            fd = self.open_file(path, wanted, flags)
        fh = self.add_file(node, fd, flags)
        self.note_append_only(self.handles[fh])
        return fh

    def note_append_only(self, handle: FileHandle) -> None:
        """Have the kernel not collect the writes of an append-only file: it would write whole pages, and set the times."""
        if self.options.writeback:
            attributes = file_syscalls.statx(handle.fd).attributes
            handle.uncached = bool(attributes & file_syscalls.STATX_ATTR_APPEND)

    def open_file(self, path: bytes, wanted: int, flags: int) -> int:
        """open(2) of the backing file; WANTED: ``backing_flags`` of the client's FLAGS."""
        try:
            return self.nodes.open_retrying(path, wanted)
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
            return self.nodes.open_retrying(path, wanted | os.O_APPEND)  # a file that may only be appended to

    def killing(self, fd: int, killer: Caller | None) -> contextlib.AbstractContextManager[None]:
        """The scope to change a file's data in: set-id bits fall as they would for KILLER (None: they stay).

        Whether S_ISGID falls depends on the caller's groups, so it is done as the caller; but looking these up is
        dear, and only a file with such a bit needs it.
        """
        if killer is None:
            return AS_IS
        if not self._clears_setid(fd, killer):
            return self._spending(killer)
        killer = killer.resolved()
        if killer.uid == self.credentials.uid:
            return self.credentials.without_fsetid()
        return self.credentials.as_caller(killer, groups=True)

    @staticmethod
    def _clears_setid(fd: int, killer: Caller) -> bool:
        return bool(os.fstat(fd).st_mode & _SETID) and not killer.is_capable(file_syscalls.CAP_FSETID)

    def _spending(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        """The scope to use up space in; a caller whose id the kernel left out is taken for one who isn't root."""
        return AS_IS if caller.uid == self.credentials.uid else self.credentials.ordinary()

    def killing_elsewhere(self, fd: int, killer: Caller | None) -> contextlib.AbstractContextManager[None]:
        """``killing`` for one use in another thread: all that is asked about the caller is asked now."""
        if killer is None:
            return AS_IS
        if not self._clears_setid(fd, killer):
            return self._spending(killer)
        killer = killer.resolved()
        known = Caller(killer.uid, killer.gid, 0, groups=killer.groups())
        credentials = Credentials()
        return (
            credentials.without_fsetid() if killer.uid == credentials.uid else credentials.as_caller(known, groups=True)
        )

    def handle(self, fh: int) -> FileHandle:
        """The open file behind a handle number; EBADF when there is none."""
        handle = self.handles.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """READ: fewer bytes than asked only at the end of the file."""
        return os.pread(self.file_fd(self.handle(fh)), size, offset)

    def write(
        self, fh: int, offset: int, data: bytes | memoryview, append: bool = False, killer: Caller | None = None
    ) -> int:
        """WRITE: bytes written; append: at the end, whatever offset says (the kernel's idea of it may be old)."""
        fd = self.writing_fd(self.handle(fh))
        if killer is not None:
            with self.killing(fd, killer):
                return self.write_at(fd, offset, data, append)
        return self.write_at(fd, offset, data, append)

    @staticmethod
    def write_at(fd: int, offset: int, data: bytes | memoryview, append: bool) -> int:
        """pwrite(2), or at the end; for any thread."""
        if append:
            return os.pwritev(fd, [data], offset, file_syscalls.RWF_APPEND)
        return os.pwrite(fd, data, offset)

    def fsync(self, fh: int, data_only: bool) -> None:
        """FSYNC and FSYNCDIR."""
        (os.fdatasync if data_only else os.fsync)(self.file_fd(self.handle(fh)))

    def release(self, fh: int) -> None:
        """RELEASE and RELEASEDIR."""
        handle = self.handles.pop(fh, None)
        if handle is not None:
            if handle.fd >= 0:
                self.close_file(handle)
            self.nodes.used(handle.node, -1)

    def close_file(self, handle: FileHandle) -> None:
        """Close the handle's fd; it is opened again when one is needed."""
        os.close(self.detach_file(handle))

    @staticmethod
    def detach_file(handle: FileHandle) -> int:
        """The handle's fd, for the caller to close."""
        fd, handle.fd = handle.fd, -1
        if handle.node.lent_fd == fd:
            handle.node.lent_fd = -1
        handle.refusal = None
        return fd

    # directories

    def opendir(self, nodeid: int) -> int:
        """OPENDIR."""
        return self._add(self.open_directory(nodeid))

    def open_directory(self, nodeid: int) -> DirectoryHandle:
        """The directory opened for reading, with a fd that the caller closes."""
        node = self.nodes.get(nodeid)
        parent_fd = self.nodes.fd(node)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        quiet = os.O_NOATIME if self.options.leaves_directory_atime() else 0

        def opener() -> int:
            try:
                return os.open(b".", flags | quiet, dir_fd=parent_fd)
            except PermissionError:  # O_NOATIME is the owner's, and CAP_FOWNER's
                return os.open(b".", flags, dir_fd=parent_fd)

        return DirectoryHandle(node, self.nodes.retrying(opener))

    def listing(self, nodeid: int) -> DirectoryHandle:
        """The directory as it is being read, where nobody opens it: one for all who read, told apart by their offsets."""
        listing = self.listings.get(nodeid)
        if listing is not None:
            if listing.node is self.nodes.get(nodeid):
                return listing
            self.end_listing(nodeid)  # another directory has the inode number now
        listing = self.listings[nodeid] = self.open_directory(nodeid)
        listing.node.users += 1
        if len(self.listings) > min(_LISTINGS, self.nodes.max_fds // 4):
            self.end_listing(next(iter(self.listings)))
        return listing

    def end_listing(self, nodeid: int) -> None:
        """It was read to its end, or too many are under way: who goes on reading it opens it again."""
        listing = self.listings.pop(nodeid, None)
        if listing is not None:
            os.close(listing.fd)
            self.nodes.used(listing.node, -1)

    def directory(self, fh: int) -> DirectoryHandle:
        """The open directory behind a handle number."""
        handle = self.handle(fh)
        if not isinstance(handle, DirectoryHandle):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return handle

    @staticmethod
    def entries(handle: DirectoryHandle, offset: int) -> Iterator[file_syscalls.DirectoryEntry]:
        """READDIR: the entries behind OFFSET, which is the backing filesystem's own and so stays valid.

        An entry is handed out for good when the next one is asked for: what a full buffer refuses comes again.
        """
        if offset == 0 or offset != handle.position:
            os.lseek(handle.fd, offset, os.SEEK_SET)
            handle.pending = []
            handle.index = 0
            handle.position = offset
        while True:
            if handle.index >= len(handle.pending):
                handle.pending = file_syscalls.getdents(handle.fd)
                handle.index = 0
                if not handle.pending:
                    return
            entry = handle.pending[handle.index]
            yield entry
            handle.index += 1
            handle.position = entry.next_offset

    def look_at_entry(self, fh: int, name: bytes) -> tuple[Node, file_syscalls.Attributes]:
        """READDIRPLUS: the node and attributes of an entry; the binding counts the lookup once the entry has fitted in."""
        handle = self.handle(fh)
        attributes = file_syscalls.statx(handle.fd, name)
        return self.nodes.see(attributes, handle.node, handle.fd, name), attributes

    def list_entry(self, directory: DirectoryHandle, name: bytes) -> tuple[int, int, Slot, tuple[int, ...]]:
        """READDIRPLUS: (node id, generation, slot, fields of statx) of an entry, one lookup counted."""
        fields = file_syscalls.statx_fields(directory.fd, name)
        if fields is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return *self.nodes.listed(fields, directory.node, directory.fd, name), fields

    def tmpfile(
        self, parent_id: int, flags: int, mode: int, caller: Caller
    ) -> tuple[Node, file_syscalls.Attributes, int]:
        """TMPFILE: open(2) with O_TMPFILE; the file has no name, so its fd is kept until it is forgotten."""
        self.demand_writable()
        parent_fd = self.nodes.fd(self.nodes.get(parent_id))
        wanted = self.backing_flags(flags) | os.O_TMPFILE | flags & os.O_EXCL
        with self.credentials.as_caller(caller, groups=bool(mode & 0o2000)):
            fd = self.nodes.retrying(lambda: os.open(b".", wanted, mode, dir_fd=parent_fd))
        attributes = file_syscalls.statx(fd)
        node = self.nodes.see(attributes, self.nodes.root, fd, b"")
        self.nodes.pin(node, self.nodes.open_retrying(proc_path(fd), os.O_PATH))
        node.lookups += 1
        return node, attributes, self.add_file(node, fd, flags)
