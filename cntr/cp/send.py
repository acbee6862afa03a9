"""The sending end: walks a tree by directory fds and sends it.

Nothing is opened for reading before it was examined: opening a FIFO blocks, opening a device has effects, and a
container may swap files between two calls. So each name is opened with O_PATH, examined, and only then opened for
reading, through that fd.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.cp import links, owners, stream
from cntr.cp.stream import Incoming, Meta, Outgoing, Tell, denied, meta_of
from cntr.errors import CntrError
from cntr.linux import kernelfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_LINK_PATH = 4000  # bytes, less than PATH_MAX: a hard link's other name is opened by path

# Extended attributes kept without --archive, and those that contain ids or privileges, which go with the owner.
NO_FILE = "only files, directories and symbolic links to such are; `cntr cp /dev/stdin …` copies what it reads"
PLAIN_ATTRIBUTES = ("user.",)
ARCHIVE_ATTRIBUTES = ("user.", "security.capability", "system.posix_acl_")


class Level:
    """A directory being sent: its fd, its name, the names still to send (last first), and its device."""

    __slots__ = ("device", "fd", "name", "names")

    def __init__(self, fd: int, device: int, name: bytes) -> None:
        """fd: open for reading; closed if it cannot be listed. Raises OSError."""
        self.fd, self.device, self.name = fd, device, name
        try:
            self.names = sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)
        except BaseException:
            os.close(fd)
            raise


class Sender:
    """Sends one file or tree.

    open_path: opens what the user named on this side: ``(path, flags) → fd``; own_fds: a directory fd of /proc/self/fd;
    owner: converts this side's ids to the other's; strangers: devices whose owners are not sent; same_machine: whether
    device and inode numbers mean the same on both sides.
    """

    fd = -1  # an open file to send instead, see ``streams``
    same_machine = True

    def __init__(
        self,
        out: Outgoing,
        answers: Incoming,
        tell: Tell,
        open_path: Callable[[bytes, int], int],
        own_fds: int,
        *,
        archive: bool,
    ) -> None:
        """archive: also read the attributes that depend on the owner."""
        self.out, self.answers, self.tell, self.open_path, self.own_fds = out, answers, tell, open_path, own_fds
        self.attributes = ARCHIVE_ATTRIBUTES if archive else PLAIN_ATTRIBUTES
        self.linked: dict[tuple[int, int], bytes] = {}  # files with several names: (device, inode) → path
        self.levels: list[Level] = []
        self.shown = b""
        self.target = (0, 0)
        self.started: Callable[[Meta], None] = stream.nothing
        self.owner: Callable[[int, int], tuple[int, int]] = stream.same
        self.strangers: frozenset[int] = frozenset()

    def run(self, path: bytes, *, follow: bool) -> None:
        """Send PATH. follow: if PATH is a symbolic link, send its target. Raises CntrError, BrokenPipeError, EOFError."""
        last = path.rstrip(b"/").rsplit(b"/", 1)[-1]
        contents = last in (b"", b".", b"..")
        self.shown = path.rstrip(b"/") or b"/"
        source, info, target = self._open(path, follow=follow or contents or path.endswith(b"/"))
        meta = self._meta(info)
        try:
            if stat.S_ISDIR(info.st_mode):
                fd, source = source, -1
                self.levels.append(Level(fd, info.st_dev, b""))
            self.out.send(stream.START, b"\1" if contents else b"\0", stream.pack_item(meta, last, target))
            self.out.flush()
            self.started(meta)
            self._await_ready()
            if self.levels and (info.st_dev, info.st_ino) == self.target:
                shown = self.tell.show(path)
                raise CntrError(f"{shown}: source and destination are the same directory", "there is nothing to copy")
            self._walk()
            if source >= 0:
                fd, source = source, -1
                self._send_data(fd, meta, b"")
            self.out.send(stream.DONE)
            self.out.flush()
        finally:
            for fd in (source, *(level.fd for level in self.levels)):
                if fd >= 0:
                    os.close(fd)
            self.levels = []

    def _open(self, path: bytes, *, follow: bool) -> tuple[int, os.stat_result, bytes]:
        """(fd for reading, -1 for a symbolic link; its status; the link's target). Raises CntrError."""
        fd = -1
        try:
            fd = self.open_path(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
            info = os.fstat(fd)
            if stat.S_ISLNK(info.st_mode):
                if what := links.stands_for(syscalls.AT_FDCWD, path):
                    raise CntrError(f"{self.tell.show(path)}: {what}: not copied", NO_FILE)
                return -1, info, os.readlink(b"", dir_fd=fd)
            if stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode):
                return self._reopen(fd, info), info, b""
            raise CntrError(f"{self.tell.show(path)}: {stream.kind_of(info.st_mode)}: not copied", NO_FILE)
        except OSError as error:
            missing = "it is a path of the host"
            if self.tell.label:
                name = self.tell.label.rstrip(":")
                missing = f"`cntr attach {name}` looks around there: the path is /var/lib/cntr/…"
            hint = denied(self.tell.label, path) if isinstance(error, PermissionError) else missing
            raise CntrError(f"{self.tell.show(path)}: {os.strerror(error.errno or 0)}", hint) from None
        finally:
            if fd >= 0:
                os.close(fd)

    def _meta(self, info: os.stat_result) -> Meta:
        """What the other side is told about a file."""
        meta = meta_of(info)
        meta.uid, meta.gid = self.owner(meta.uid, meta.gid)
        if info.st_dev in self.strangers:
            meta.uid = meta.gid = stream.KEEP
        return meta

    def _await_ready(self) -> None:
        while True:
            kind, body = self.answers.receive()
            if kind == stream.READY:
                device, inode = stream.NUMBERS.unpack(body)
                if self.same_machine:
                    self.target = device, inode
                return
            if not stream.take_word(kind, body, self.tell):
                raise stream.ProtocolError(f"no answer: {kind!r}")

    def _reopen(self, fd: int, info: os.stat_result) -> int:
        """Open the file of an O_PATH fd for reading, whatever its name refers to by now."""
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECTORY if stat.S_ISDIR(info.st_mode) else 0)
        return os.open(b"%d" % fd, flags, dir_fd=self.own_fds)

    def _walk(self) -> None:
        """Walk depth first, without recursion: a tree may be deeper than Python's stack."""
        while self.levels:
            level = self.levels[-1]
            if level.names:
                below = self._send_entry(level, level.names.pop())
                if below:
                    self.levels.append(below)
                continue
            self._send_attributes(level.fd, b"")
            self.out.send(stream.UP)
            os.close(level.fd)
            self.levels.pop()

    def _below(self, name: bytes) -> bytes:
        """The path from the top; computed only when needed, since deep trees have long paths."""
        return b"/".join(part for part in (*(level.name for level in self.levels), name) if part)

    def _path(self, name: bytes) -> bytes:
        """The path for messages, starting as the user named the top."""
        below = self._below(name)
        return b"%s/%s" % (self.shown.rstrip(b"/"), below) if below else self.shown

    def _problem(self, name: bytes, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        self.tell.problem(self._path(name), os.strerror(error.errno or 0))

    def _send_entry(self, level: Level, name: bytes) -> Level | None:
        """Send one entry of a directory; return a Level if it is a directory to enter."""
        try:
            fd = os.open(name, LOOK, dir_fd=level.fd)
        except FileNotFoundError:
            self.tell.note("gone before it was copied", self._path(name))
            return None
        except OSError as error:
            self._problem(name, error)
            return None
        try:
            return self._send_found(fd, name, level.device)
        except OSError as error:
            self._problem(name, error)
            return None
        finally:
            os.close(fd)

    def _send_found(self, fd: int, name: bytes, device: int) -> Level | None:
        """Send the file of FD (O_PATH). Raises OSError before any part of it is sent."""
        info = os.fstat(fd)
        meta = self._meta(info)
        if stat.S_ISDIR(info.st_mode):
            return self._send_directory(fd, info, name, device)
        if stat.S_ISLNK(info.st_mode):
            self.out.send(stream.ITEM, stream.pack_item(meta, name, os.readlink(b"", dir_fd=fd)))
        elif stat.S_ISREG(info.st_mode):
            known = self.linked.get((info.st_dev, info.st_ino)) if meta.linked else None
            if known is not None:
                self.out.send(stream.LINK, stream.pack_item(meta, name, known))
                return None
            source = self._reopen(fd, info)
            self.out.send(stream.ITEM, stream.pack_item(meta, name))
            if self._send_data(source, meta, name) and meta.linked:
                below = self._below(name)
                if len(below) < MAX_LINK_PATH:
                    self.linked[info.st_dev, info.st_ino] = below
        else:
            self.tell.problem(self._path(name), f"{stream.kind_of(info.st_mode)}: not copied")
        return None

    def _send_directory(self, fd: int, info: os.stat_result, name: bytes, device: int) -> Level | None:
        if (info.st_dev, info.st_ino) == self.target:
            self.tell.problem(self._path(name), "the destination itself: not copied into itself")
            return None
        source = self._reopen(fd, info)
        if info.st_dev != device and kernelfs.holds(source):
            self.tell.note("the kernel's own, no files: not copied", self._path(name))
            os.close(source)
            return None
        level = Level(source, info.st_dev, name)
        self.out.send(stream.ITEM, stream.pack_item(self._meta(info), name))
        return level

    def _send_data(self, fd: int, meta: Meta, name: bytes) -> bool:
        """Send a file's data, attributes and END; close fd. Return whether it was read completely: otherwise the
        receiver drops it.
        """
        whole = False
        try:
            size = self._send_blocks(fd, 0 if kernelfs.holds(fd) else meta.size)
            # The size alone does not tell: files in /sys report a page and hold less.
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (meta.size, meta.mtime):
                self.tell.note("changed while it was copied", self._path(name))
            self.out.send(stream.TRUNCATE, stream.OFFSET.pack(size))
            self._send_attributes(fd, name)
            whole = True
        except OSError as error:
            self._problem(name, error)
        finally:
            os.close(fd)
        self.out.send(stream.END, b"\1" if whole else b"\0")
        return whole

    def _send_blocks(self, fd: int, size: int) -> int:
        """Send the data without holes; return the size read. Raises OSError."""
        if size == 0:  # empty, or a kernel file (proc(5)): read to the end
            while data := os.read(fd, stream.CHUNK):
                self.out.send(stream.BLOCK, stream.OFFSET.pack(size), data)
                size += len(data)
            return size
        for start, length in extents(fd, size):
            offset, end = start, start + length
            while offset < end:
                data = os.pread(fd, min(stream.CHUNK, end - offset), offset)
                if not data:  # truncated meanwhile
                    return offset
                self.out.send(stream.BLOCK, stream.OFFSET.pack(offset), data)
                offset += len(data)
        return size

    def _send_attributes(self, fd: int, name: bytes) -> None:
        try:
            names = os.listxattr(fd)
        except OSError:  # ENOTSUP: the filesystem has none
            return
        for key in names:
            if key.startswith(self.attributes):
                try:
                    value = os.getxattr(fd, key)
                except OSError as error:
                    self.tell.note(f"extended attribute not kept: {os.strerror(error.errno or 0)}", self._path(name))
                else:
                    self._send_attribute(os.fsencode(key), value, name)

    def _send_attribute(self, key: bytes, value: bytes, name: bytes) -> None:
        translated = owners.attribute(key, value, self.owner)
        if translated is None:
            self.tell.note(owners.NO_ACL, self._path(name))
        else:
            self.out.send(stream.XATTR, stream.pack_pair(key, translated))


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the data below SIZE, without holes (lseek(2), SEEK_DATA). Raises OSError."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # EINVAL: the filesystem does not support holes
                yield offset, size - offset
            return
        if start < offset or end <= start:  # beyond SIZE, or a filesystem that returns nonsense
            if start < size:
                yield offset, size - offset
            return
        yield start, end - start
        offset = end
