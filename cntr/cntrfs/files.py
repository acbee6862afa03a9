"""Open files and directories: one backing fd per open, with the flags of that open."""

from __future__ import annotations

import contextlib
import errno
import os
from _thread import allocate_lock

from cntr.cntrfs.backing import STRIPPED, proc_path
from cntr.cntrfs.node import Node
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cntr.cntrfs.backing import OpenerIdentity
    from cntr.cntrfs.nodes import NodeTable
    from cntr.cntrfs.options import Options

_LISTINGS = 32  # most directories whose position is remembered while they are read unopened
FMODE_EXEC = 0x20  # linux/fs.h: opened for execution by the kernel; open(2) does not accept it
_NOT_WRITABLE_ANY_MORE = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ETXTBSY)


class FileHandle:
    """An open file or directory. ``fd`` is -1 until it is needed: the kernel reads and writes the file itself."""

    __slots__ = ("append", "fd", "flags", "node", "passthrough", "refusal", "uncached", "writable")

    def __init__(self, node: Node, fd: int, flags: int) -> None:
        """flags: of the client's open(2)."""
        self.node = node
        self.fd = fd
        self.flags = flags
        self.append = bool(flags & os.O_APPEND)
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.passthrough = False  # the kernel reads and writes the backing file itself
        self.uncached = False  # the kernel must not cache its writes
        # fd is for reading only: why the file cannot be opened for writing any more
        self.refusal: OSError | None = None


class DirectoryHandle(FileHandle):
    """An open directory, and how far it has been read."""

    __slots__ = ("index", "is_filled", "pending", "position", "reading")

    def __init__(self, node: Node, fd: int) -> None:
        """pending: entries read from the directory; those from index on are not yet returned."""
        super().__init__(node, fd, os.O_RDONLY)
        self.pending: list[file_syscalls.DirectoryEntry] = []
        self.index = 0
        self.position = 0
        self.is_filled = False  # only ``refill`` fills it
        self.reading = allocate_lock()  # held while refilling

    def has(self, offset: int) -> bool:
        """Whether an entry after OFFSET has been read."""
        return offset == self.position and self.index < len(self.pending)

    def refill(self, offset: int, entries: list[file_syscalls.DirectoryEntry]) -> None:
        """Store the entries read after OFFSET; none at the end."""
        self.pending, self.index, self.position, self.is_filled = entries, 0, offset, True

    def entries(self, offset: int) -> Iterator[file_syscalls.DirectoryEntry]:
        """READDIR: the entries after OFFSET, which is the backing filesystem's own and so stays valid.

        An entry is consumed when the next one is requested: one that does not fit in the buffer is returned again.
        """
        if not self.is_filled and (offset == 0 or offset != self.position):
            os.lseek(self.fd, offset, os.SEEK_SET)
            self.pending = []
            self.index = 0
            self.position = offset
        while True:
            if self.index >= len(self.pending):
                if self.is_filled:
                    return
                self.pending = file_syscalls.getdents(self.fd)
                self.index = 0
                if not self.pending:
                    return
            entry = self.pending[self.index]
            yield entry
            self.index += 1
            self.position = entry.next_offset


class OpenFiles:
    """The clients' open files, by handle number; for the serving thread."""

    def __init__(self, nodes: NodeTable, options: Options) -> None:
        self._nodes = nodes
        self._fds = nodes.fds
        self._options = options
        self.handles: dict[int, FileHandle] = {}
        #: Of whom each handle on proc, sysfs and the like is: there it also counts who reads and writes. By its number.
        self.rights: dict[int, OpenerIdentity] = {}
        self._last = 0
        self._listings: dict[int, DirectoryHandle] = {}

    def close_all(self) -> None:
        """Close every fd."""
        for handle in self.handles.values():
            if handle.fd >= 0:
                os.close(handle.fd)
        self.handles.clear()
        for listing in self._listings.values():
            os.close(listing.fd)
        self._listings.clear()

    def backing_flags(self, flags: int) -> int:
        """The flags for opening a backing file for a client's open(2) FLAGS.

        With the kernel's writeback cache a partial page is read before it is written, so O_WRONLY becomes O_RDWR.
        """
        wanted = flags & ~(STRIPPED | FMODE_EXEC) | os.O_CLOEXEC
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._options.demand_writable()
        if self._options.writeback and flags & os.O_ACCMODE == os.O_WRONLY:
            wanted = wanted & ~os.O_ACCMODE | os.O_RDWR
        return wanted

    def add(self, node: Node, fd: int, flags: int, rights: OpenerIdentity | None = None) -> int:
        """Add an open backing file (fd -1: opened when first needed); return the handle's number."""
        number = self.enter(FileHandle(node, fd, flags))
        if rights is not None:
            self.rights[number] = rights
        return number

    def enter(self, handle: FileHandle) -> int:
        """Add an open file or directory; return its number."""
        number = self._last = self._last + 1
        self.handles[number] = handle
        node = handle.node
        node.users += 1
        if node.pinned:
            self._fds.may_grow(node)
        if node.mount.copies_up:
            self._fds.hold(node)
        return number

    def fd(self, handle: FileHandle) -> int:
        """The handle's own fd, opened now if it has none."""
        if handle.fd < 0:
            path = proc_path(self._fds.fd(handle.node))
            try:
                handle.fd = self.open_file(path, self.backing_flags(handle.flags) & ~os.O_TRUNC, handle.flags)
            except OSError as error:
                if not handle.writable or error.errno not in _NOT_WRITABLE_ANY_MORE:
                    raise
                # The client opened it when it was writable (before chattr +i): operations that do not write still work.
                handle.fd = self._fds.open_retrying(path, os.O_RDONLY)
                handle.refusal = error
        return handle.fd

    def writing_fd(self, handle: FileHandle) -> int:
        """``fd`` for writing. If it was reopened and could not be opened for writing, raise that error."""
        fd = self.fd(handle)
        if handle.refusal is not None:
            raise OSError(handle.refusal.errno, os.strerror(handle.refusal.errno or 0))
        return fd

    def note_append_only(self, handle: FileHandle) -> None:
        """Keep the kernel from caching writes to an append-only file: it would write whole pages, and set the times."""
        if self._options.writeback:
            attributes = file_syscalls.statx(handle.fd).attributes
            handle.uncached = bool(attributes & file_syscalls.STATX_ATTR_APPEND)

    def open_file(self, path: bytes, wanted: int, flags: int) -> int:
        """open(2) of the backing file. WANTED: ``backing_flags`` of the client's FLAGS."""
        try:
            return self._fds.open_retrying(path, wanted)
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
            return self._fds.open_retrying(path, wanted | os.O_APPEND)  # an append-only file

    def demand_not_run(self, node: Node, flags: int) -> None:
        """Raise ETXTBSY if FLAGS are O_RDONLY|O_TRUNC and a client runs the file: the kernel checks
        only after the truncation.

        May be called by any thread with a copy of the node.
        """
        if not flags & os.O_ACCMODE and any(
            handle.flags & FMODE_EXEC and handle.node.nodeid == node.nodeid for handle in list(self.handles.values())
        ):
            raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))

    def handle(self, fh: int) -> FileHandle:
        """The open file of a handle number. Raises OSError (EBADF)."""
        handle = self.handles.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """READ: returns fewer bytes than asked only at the end of the file."""
        return os.pread(self.fd(self.handle(fh)), size, offset)

    def write(self, fh: int, offset: int, data: bytes | memoryview, append: bool = False) -> int:
        """WRITE: returns bytes written. append: at the end, whatever offset says (the kernel's size may be stale)."""
        return self.write_at(self.writing_fd(self.handle(fh)), offset, data, append)

    @staticmethod
    def write_at(fd: int, offset: int, data: bytes | memoryview, append: bool) -> int:
        """pwrite(2), or append; for any thread."""
        if append:
            return os.pwritev(fd, [data], offset, file_syscalls.RWF_APPEND)
        return os.pwrite(fd, data, offset)

    @staticmethod
    def write_made_up(fd: int, offset: int, data: bytes | memoryview) -> int:
        """write(2) at OFFSET if the file has such; many of proc and the like refuse pwrite(2). For any thread."""
        with contextlib.suppress(OSError):
            os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)

    def fsync(self, fh: int, data_only: bool) -> None:
        """FSYNC and FSYNCDIR."""
        (os.fdatasync if data_only else os.fsync)(self.fd(self.handle(fh)))

    def release(self, fh: int) -> None:
        """RELEASE and RELEASEDIR."""
        handle = self.handles.pop(fh, None)
        if self.rights:
            self.rights.pop(fh, None)
        if handle is not None:
            if handle.fd >= 0:
                self.close(handle)
            self._nodes.used(handle.node, -1)

    def close(self, handle: FileHandle) -> None:
        """Close the handle's fd; it is reopened when needed."""
        os.close(self.detach(handle))

    @staticmethod
    def detach(handle: FileHandle) -> int:
        """Take the handle's fd; the caller closes it."""
        fd, handle.fd = handle.fd, -1
        if handle.node.lent_fd == fd:
            handle.node.lent_fd = -1
        handle.refusal = None
        return fd

    # directories

    def listing(self, node: Node, open_directory: Callable[[int], DirectoryHandle]) -> DirectoryHandle:
        """The state of a directory that is read without being opened: one for all readers, who differ by their offsets."""
        listing = self.known_listing(node.nodeid)
        if listing is None:
            listing = open_directory(node.nodeid)
            self.add_listing(listing)
        return listing

    def known_listing(self, nodeid: int) -> DirectoryHandle | None:
        """The same, if it exists."""
        listing = self._listings.get(nodeid)
        if listing is not None and listing.node is not self._nodes.known(nodeid):
            self.end_listing(nodeid)  # the inode number is another directory's now
            return None
        return listing

    def add_listing(self, listing: DirectoryHandle) -> None:
        """Start reading a directory."""
        self.end_listing(listing.node.nodeid)
        self._listings[listing.node.nodeid] = listing
        listing.node.users += 1
        if len(self._listings) > min(_LISTINGS, self._fds.max_fds // 4):
            self.end_listing(next(iter(self._listings)))

    def end_listing(self, nodeid: int) -> None:
        """Drop it: it was read to the end, or there are too many. Whoever continues to read opens it again."""
        listing = self._listings.pop(nodeid, None)
        if listing is not None:
            os.close(listing.fd)
            self._nodes.used(listing.node, -1)

    def directory(self, fh: int) -> DirectoryHandle:
        """The open directory of a handle number."""
        handle = self.handle(fh)
        if not isinstance(handle, DirectoryHandle):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return handle
