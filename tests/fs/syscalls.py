"""System calls that the checks need and the standard library lacks, independent of ``cntr.linux``.

They are written a second time on purpose: the same wrong constant in server and checks would go
unnoticed. Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EACCESS = 0x200
AT_EMPTY_PATH = 0x1000

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 0x01, 0x02
FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE = 0x08, 0x10, 0x20

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_IOC_FIEMAP = 0xC020660B
FICLONE = 0x40049409
FIONREAD = 0x541B
FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL = 0x10, 0x20, 0x40, 0x80

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS = 1, 8
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID = 0, 1, 2, 3, 4

IN_MODIFY, IN_ATTRIB, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_CLOSE_WRITE, IN_NONBLOCK = 0x100, 0x200, 0x8, 0o4000

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

O_TMPFILE = 0o20200000
O_PATH = os.O_PATH

# Errors that mean "this filesystem does not support the operation".
_libc = ctypes.CDLL(None, use_errno=True)
_long = ctypes.c_long
_loff = ctypes.c_int64


def _check(result: int, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else os.fspath(path))  # type: ignore[call-overload]
    return result


def renameat2(old: Any, new: Any, flags: int) -> None:
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, _loff(offset), _loff(length)))


def linkat(olddir: int, old: Any, newdir: int, new: Any, flags: int) -> None:
    _check(_libc.linkat(olddir, os.fsencode(old), newdir, os.fsencode(new), flags), new)


def link_fd(fd: int, new: Any) -> None:
    """Give an open file a name. os.link calls link(2), which never follows."""
    linkat(AT_FDCWD, f"/proc/self/fd/{fd}", AT_FDCWD, new, AT_SYMLINK_FOLLOW)


def faccessat(path: Any, mode: int, flags: int) -> None:
    """faccessat2 of the kernel, not glibc's emulation by stat."""
    number = 439
    _check(_libc.syscall(_long(number), AT_FDCWD, os.fsencode(path), mode, flags), path)


def utimensat(path: Any, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times as (seconds, nanoseconds); a nanosecond field may be UTIME_NOW or UTIME_OMIT."""
    times = struct.pack("qqqq", *atime, *mtime)
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(fd))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    _check(_libc.sync_file_range(fd, _loff(offset), _loff(length), flags))


def splice(fd_in: int, fd_out: int, count: int) -> int:
    """os.splice exists since Python 3.10; this one has no offsets."""
    return _check(_libc.splice(fd_in, None, fd_out, None, ctypes.c_size_t(count), 0))


def setfsuid(uid: int) -> None:
    _libc.setfsuid(uid)


def setfsgid(gid: int) -> None:
    _libc.setfsgid(gid)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def set_capabilities(permitted: int, effective: int) -> None:
    """capset(2) on the calling process; 64-bit masks."""
    header = struct.pack("Ii", 0x20080522, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack("6I", effective & low, permitted & low, 0, effective >> high, permitted >> high, 0)
    _check(_libc.capset(header, data))


def capabilities() -> int:
    """The effective set of the calling process."""
    with open("/proc/thread-self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


class Statx(NamedTuple):
    """The fields of struct statx that the checks compare."""

    mask: int
    attributes: int
    attributes_mask: int
    ino: int
    mode: int
    btime_ns: int
    mnt_id: int
    dio_mem_align: int


STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID, STATX_DIOALIGN = 0x7FF, 0x800, 0x1000, 0x2000


def statx(path: Any, flags: int = 0, mask: int = 0x3FFF) -> Statx:
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), flags, mask, buffer), path)
    raw = buffer.raw
    got_mask, _blksize, attributes, _nlink, _uid, _gid, mode = struct.unpack_from("IIQIIIH", raw, 0)
    ino, _size, _blocks, attributes_mask = struct.unpack_from("QQQQ", raw, 32)
    seconds, nanoseconds = struct.unpack_from("qI", raw, 80)
    mnt_id, dio_mem_align = struct.unpack_from("QI", raw, 144)
    btime = seconds * 10**9 + nanoseconds
    return Statx(got_mask, attributes, attributes_mask, ino, mode, btime, mnt_id, dio_mem_align)


class Entry(NamedTuple):
    """struct linux_dirent64."""

    ino: int
    off: int
    type: int
    name: bytes


def getdents(fd: int, size: int = 32768) -> list[Entry]:
    """One getdents64(2) call: the kernel's entries, with `.` and `..`; empty at the end."""
    buffer = ctypes.create_string_buffer(size)
    count = _check(_libc.getdents64(fd, buffer, size))
    entries, at = [], 0
    while at < count:
        ino, off, length, kind = struct.unpack_from("=QqHB", buffer.raw, at)
        name = buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]
        entries.append(Entry(ino, off, kind, name))
        at += length
    return entries


def read_directory(path: Any, size: int = 32768) -> list[Entry]:
    """All entries of the directory, with `.` and `..`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries: list[Entry] = []
        while batch := getdents(fd, size):
            entries += batch
        return entries
    finally:
        os.close(fd)


def name_to_handle(path: Any) -> bytes:
    """The struct file_handle of PATH, for open_by_handle."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    _check(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), 0), path)
    length, _kind = struct.unpack_from("Ii", buffer.raw)
    return buffer.raw[: 8 + length]


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    return _check(_libc.open_by_handle_at(mount_fd, ctypes.create_string_buffer(handle, len(handle)), flags))


class Inotify:
    """A watch on one path; events() returns (mask, name) of each queued event."""

    def __init__(self, path: Any, mask: int) -> None:
        self.fd = _check(_libc.inotify_init1(IN_NONBLOCK))
        _check(_libc.inotify_add_watch(self.fd, os.fsencode(path), mask), path)

    def events(self) -> Iterator[tuple[int, bytes]]:
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            _wd, mask, _cookie, length = struct.unpack_from("iIII", data, at)
            yield mask, data[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length

    def close(self) -> None:
        os.close(self.fd)


def errno_of(call: Callable[[], object]) -> int:
    """The errno that CALL fails with; 0 if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0
