"""A file on the receiving end: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import stat

from cntr.cp import links, stream
from cntr.cp.send import extents
from cntr.cp.stream import Meta


class NotReplaced(OSError):
    """The existing file of that name must not be lost; strerror says what it is."""


class Partial:
    """A file being received under a temporary name: its directory, its final name, its fd (read and write)."""

    __slots__ = ("dir_fd", "fd", "meta", "name", "temporary")

    def __init__(self, dir_fd: int, name: bytes, meta: Meta, temporary: bytes) -> None:
        """Create it. Raises OSError."""
        self.dir_fd, self.name, self.meta, self.temporary = dir_fd, name, meta, temporary
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(self.temporary, flags, 0o600, dir_fd=dir_fd)

    def drop(self) -> None:
        """Close and remove it."""
        os.close(self.fd)
        remove(self.dir_fd, self.temporary)


def temporary_name() -> bytes:
    """A random name."""
    return b".cntr-cp-" + os.urandom(6).hex().encode()


def remove(dir_fd: int, name: bytes) -> None:
    """Unlink NAME if it exists."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except OSError:
        pass


def mode_of(dir_fd: int, name: bytes) -> int:
    """st_mode of NAME itself, without following a symbolic link; 0 if there is nothing. Raises OSError."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def replaceable(mode: int) -> bool:
    """Whether a file may replace it: a copy never replaces a device or a directory."""
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def place(dir_fd: int, temporary: bytes, name: bytes) -> None:
    """Rename a finished file to its name. Raises OSError."""
    mode = mode_of(dir_fd, name)
    if mode and not replaceable(mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EEXIST, "not replaced")
    if stat.S_ISLNK(mode) and (what := links.stands_for(dir_fd, name)):
        raise NotReplaced(errno.EEXIST, f"{what}: not replaced")
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def overwrite(file: Partial) -> None:
    """Write a finished file's data into the existing file, which cannot be replaced. Raises OSError."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(file.name, flags, dir_fd=file.dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotReplaced(errno.EEXIST, "replaced meanwhile")
        os.ftruncate(fd, 0)
        copy_data(file.fd, fd)
    finally:
        os.close(fd)


def copy_data(source: int, target: int) -> None:
    """Copy the data of one file into another, empty one, preserving holes. Raises OSError."""
    size = os.fstat(source).st_size
    for start, length in extents(source, size):
        offset, end = start, start + length
        while offset < end and (data := os.pread(source, min(stream.CHUNK, end - offset), offset)):
            view = memoryview(data)
            while view:
                count = os.pwrite(target, view, offset)
                view, offset = view[count:], offset + count
    os.ftruncate(target, size)
