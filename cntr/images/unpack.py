"""Unpacks layers into a directory, as overlayfs would show them: whiteouts, opaque directories, hard links, holes, xattrs.

Every name is opened relative to a directory's fd by openat2(2) with RESOLVE_BENEATH, NO_SYMLINKS, NO_MAGICLINKS and NO_XDEV, so no name
in an archive leads outside. Where a lower layer has a symbolic link or a file and an upper one needs a directory, the directory replaces
it, as in an overlay; within one layer that is refused. Files are always created, never written into: they may have hard links in another
image.
"""

from __future__ import annotations

import os
import stat

from cntr.errors import printable
from cntr.images import ImageError, Limits, removal
from cntr.images.removal import O_DIRECTORY, RESOLVE
from cntr.images.tar import Entry, Reader
from cntr.images.unpacked import FREE_EVERY, Unpacked, check_disk
from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from cntr.images import Image

WHITEOUT, OPAQUE, META = b".wh.", b".wh..wh..opq", b".wh..wh."
DEPTH = 512
CACHED = 128  # directories kept open
XATTR_LIMIT = 1 << 16  # XATTR_SIZE_MAX, linux/limits.h
BLOCK = 1 << 16
ZEROS = bytes(BLOCK)
ENOENT, EEXIST, ENOTDIR, ELOOP, EXDEV = 2, 17, 20, 40, 18


def unpack(image: Image, directory_fd: int, limits: Limits, *, devices: bool = False) -> Unpacked:
    """Unpack all layers of IMAGE, lowest first. Raises ImageError, OSError."""
    with Unpacked(image.label()) as result:
        for layer in image.layers:
            with layer.open(limits) as stream:
                apply(
                    stream, directory_fd, printable(layer.digest or layer.diff_id)[:79], limits, result, devices=devices
                )
    return result


def apply(
    stream: BinaryIO, directory_fd: int, what: str, limits: Limits, result: Unpacked, *, devices: bool = False
) -> None:
    """Apply one layer's tar to the contents of the directory. Raises ImageError, OSError."""
    one = _Layer(stream, directory_fd, f"layer {what}", limits, result, devices)
    try:
        one.run()
    finally:
        one.close()


class _Layer:
    """One layer being applied."""

    def __init__(self, stream: BinaryIO, root: int, what: str, limits: Limits, result: Unpacked, devices: bool) -> None:
        self.stream, self.root, self.limits, self.result, self.devices = stream, root, limits, result, devices
        self.reader = Reader(stream, what, limits)
        self.reader.entries = result.entries
        self.made: set[bytes] = set()  # paths created by this layer, which its whiteouts do not remove
        self.open: dict[bytes, int] = {}  # directory fds, by path
        self.times: dict[bytes, int] = {}
        self.unchecked = FREE_EVERY  # bytes since free space was checked
        # otherwise everything belongs to the caller: for a user, to the container's root
        self.owners = procfs.has_all_ids()

    def close(self) -> None:
        for fd in self.open.values():
            os.close(fd)
        self.open.clear()

    def run(self) -> None:
        for entry in self.reader:
            self.one(entry)
        self.result.entries = self.reader.entries
        while self.stream.read(1 << 18):  # after the archive's end; digests are compared at the end of the stream
            pass
        for path, mtime in self.times.items():
            try:
                fd = self.directory(path, make=False)
            except OSError as error:
                if error.errno in (ENOENT, ENOTDIR, ELOOP):
                    continue  # replaced later in the same layer
                raise
            os.utime(fd, ns=(mtime, mtime))

    def bad(self, why: str, path: bytes) -> ImageError:
        return self.reader.bad(f"{why}: {printable(os.fsdecode(path[:200]))}")

    def components(self, name: bytes) -> list[bytes]:
        """The components of a member's name: a leading / and every . are dropped, as in tar; .. is refused."""
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise self.bad("a name with ..", name)
        if len(parts) > DEPTH or any(len(part) > 255 for part in parts):
            raise self.bad("a name that is too long", name)
        return parts

    def one(self, entry: Entry) -> None:
        parts = self.components(entry.name)
        if not parts:
            if entry.kind == "directory":
                self.metadata(self.root, entry)
                self.times[b""] = entry.mtime
            return
        parent, name = b"/".join(parts[:-1]), parts[-1]
        path = parent + b"/" + name if parent else name
        if name.startswith(WHITEOUT):
            self.whiteout(parent, name)
            return
        if any(part.startswith(WHITEOUT) for part in parts):
            raise self.bad("a directory that is called like a whiteout", path)
        fd = self.directory(parent, make=True)
        if entry.kind == "directory":
            self.make_directory(fd, parent, name, path, entry)
        else:
            self.make(fd, name, path, entry)
        self.made.add(path)

    # --- directories --------------------------------------------------------------------------------------------------

    def directory(self, path: bytes, *, make: bool) -> int:
        """The fd of a directory of the tree, created if missing. Raises OSError, ImageError."""
        if not path:
            return self.root
        fd = self.open.get(path)
        if fd is not None:
            return fd
        try:
            fd = syscalls.openat2(self.root, path, O_DIRECTORY, RESOLVE)
        except OSError as error:
            if not make or error.errno not in (ENOENT, ENOTDIR, ELOOP):
                raise
            fd = self.make_parents(path)
        if len(self.open) >= CACHED:
            os.close(self.open.pop(next(iter(self.open))))
        self.open[path] = fd
        return fd

    def make_parents(self, path: bytes) -> int:
        """Create the missing directories of PATH; a file of a lower layer in the way is replaced."""
        fd, so_far = os.dup(self.root), b""
        try:
            for part in path.split(b"/"):
                so_far = so_far + b"/" + part if so_far else part
                try:
                    below = syscalls.openat2(fd, part, O_DIRECTORY, RESOLVE)
                except OSError as error:
                    if error.errno not in (ENOENT, ENOTDIR, ELOOP):
                        raise
                    if error.errno != ENOENT:
                        if so_far in self.made:
                            raise self.bad("an entry below what is no directory", path) from None
                        self.remove(fd, part, so_far)
                    os.mkdir(part, 0o755, dir_fd=fd)
                    below = syscalls.openat2(fd, part, O_DIRECTORY, RESOLVE)
                os.close(fd)
                fd = below
            return fd
        except BaseException:
            os.close(fd)
            raise

    def make_directory(self, fd: int, parent: bytes, name: bytes, path: bytes, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                self.remove(fd, name, path)
                os.mkdir(name, 0o700, dir_fd=fd)
        own = self.directory(path, make=False)
        for key in _xattr_names(own):  # an existing directory gets this layer's only
            _remove_xattr(own, key)
        self.metadata(own, entry)
        self.times[path] = entry.mtime

    def remove(self, fd: int, name: bytes, path: bytes, *, spare: bool = False) -> bool:
        """Remove NAME recursively; spare: except what this layer created. Return whether it is gone."""
        return removal.remove(fd, name, path, self.made.__contains__ if spare else _never, self.forget)

    def forget(self, path: bytes) -> None:
        """Close the cached fd of a directory that is removed (those below it were removed first)."""
        fd = self.open.pop(path, -1)
        if fd >= 0:
            os.close(fd)

    def whiteout(self, parent: bytes, name: bytes) -> None:
        """``.wh.NAME`` hides NAME of lower layers, ``.wh..wh..opq`` everything that lower layers have in the directory (OCI layer.md)."""
        if name == OPAQUE:
            try:
                fd = self.directory(parent, make=True)
            except OSError as error:
                raise self.bad(error.strerror or str(error), parent) from None
            for child in os.listdir(fd):
                encoded = os.fsencode(child)
                self.remove(fd, encoded, parent + b"/" + encoded if parent else encoded, spare=True)
            return
        if name.startswith(META):
            return  # aufs metadata
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise self.bad("a whiteout of nothing", name)
        try:
            fd = self.directory(parent, make=False)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP):
                return  # nothing below it either
            raise
        self.remove(fd, hidden, parent + b"/" + hidden if parent else hidden, spare=True)

    # --- everything else ----------------------------------------------------------------------------------------------

    def make(self, fd: int, name: bytes, path: bytes, entry: Entry) -> None:
        try:
            self.create(fd, name, path, entry)
        except FileExistsError:
            self.remove(fd, name, path)
            self.create(fd, name, path, entry)

    def create(self, fd: int, name: bytes, path: bytes, entry: Entry) -> None:
        if entry.kind == "file":
            made = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
            try:
                self.write(made, entry)
                self.metadata(made, entry)
                os.utime(made, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(made)
            self.result.files += 1
            return
        if entry.kind == "hardlink":
            self.hard_link(fd, name, path, entry)
            return
        if entry.kind == "symlink":
            if not entry.link:
                raise self.bad("a symbolic link to nothing", path)
            os.symlink(entry.link, name, dir_fd=fd)
        elif entry.kind == "fifo":
            os.mkfifo(name, 0o600, dir_fd=fd)
        elif self.devices:
            kind = stat.S_IFCHR if entry.kind == "char" else stat.S_IFBLK
            if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
                raise self.bad("a device number that is none", path)
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=fd)
        else:
            self.result.devices += 1
            return
        if self.owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        if entry.kind != "symlink":
            # Nobody else can write here, so the name is still the file created above, not a symbolic link.
            os.chmod(name, entry.mode, dir_fd=fd)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)

    def hard_link(self, fd: int, name: bytes, path: bytes, entry: Entry) -> None:
        """linkat(2) of a file in the tree. It is not a directory and not reached by symbolic links, so an entry created it."""
        parts = self.components(entry.link)
        target = b"/".join(parts)
        if not parts or target == path:
            if target == path and path in self.made:
                return
            raise self.bad("a hard link to itself or to nothing", path)
        try:
            source = self.directory(b"/".join(parts[:-1]), make=False)
            status = os.stat(parts[-1], dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise self.bad("a hard link to a directory", path)
            os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP, EXDEV):
                raise self.bad(
                    f"a hard link to {printable(os.fsdecode(entry.link[:200]))}, which is not there", path
                ) from None
            raise

    def write(self, fd: int, entry: Entry) -> None:
        """Write a file's content. Runs of zero bytes become holes, so a file of zeros takes no space."""
        self.room(fd, entry.stored)
        if entry.parts is not None:
            self.write_parts(fd, entry)
            return
        position, hole = 0, False
        for chunk in self.reader.data():
            if len(chunk) < BLOCK or chunk.find(ZEROS) < 0:
                _write(fd, chunk, position)
                hole = False
                position += len(chunk)
                continue
            for start in range(0, len(chunk), BLOCK):
                block = chunk[start : start + BLOCK]
                hole = block == ZEROS
                if not hole:
                    _write(fd, block, position)
                position += len(block)
        if hole:
            os.ftruncate(fd, position)

    def write_parts(self, fd: int, entry: Entry) -> None:
        rows = iter(entry.parts or ())
        position = end = 0
        for chunk in self.reader.data():
            while chunk:
                while position >= end:
                    offset, length = next(rows)
                    position, end = offset, offset + length
                part = chunk[: end - position]
                _write(fd, part, position)
                position += len(part)
                chunk = chunk[len(part) :]
        os.ftruncate(fd, entry.size)

    def room(self, fd: int, size: int) -> None:
        """Raise ImageError if the disk or the limits have no room for SIZE bytes."""
        self.result.wrote(size)
        if self.result.bytes > self.limits.total:
            raise self.reader.bad(f"files of more than {self.limits.total} bytes")
        self.unchecked += size
        if self.unchecked >= FREE_EVERY:
            self.unchecked = 0
            check_disk(fd, self.limits.free + size)

    def metadata(self, fd: int, entry: Entry) -> None:
        """Set owner, mode, xattrs, in this order: chown(2) clears set-id bits and file capabilities."""
        if self.owners:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for key, value in entry.xattrs.items():
            if not _is_wanted(key) or len(value) > XATTR_LIMIT:
                self.result.xattrs += 1
                continue
            try:
                os.setxattr(fd, key, value)
            except OSError:
                self.result.xattrs += 1  # the filesystem has none, or no space for more


def _never(path: bytes) -> bool:
    return False


def _write(fd: int, data: bytes, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written


def _is_wanted(key: bytes) -> bool:
    """Keep user.*, file capabilities and ACLs; drop what controls an overlay, and security labels, which this machine assigns."""
    if key.startswith((b"user.overlay.", b"user.fuseoverlayfs.", b"user.containers.")):
        return False
    return key.startswith((b"user.", b"system.posix_acl_")) or key == b"security.capability"


def _xattr_names(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError:
        return []


def _remove_xattr(fd: int, key: str) -> None:
    if _is_wanted(os.fsencode(key)):
        os.removexattr(fd, key)
