"""The filesystem server's system calls: everything it needs that ``os`` lacks.

Used by ``cntrfs``; the attach core uses ``syscalls``. A client's rights are in ``credentials``, the watch's calls in ``fanotify``.
Every function raises OSError with the kernel's errno. Constants have the kernel's names (include/uapi/linux/{stat,fcntl,fs,falloc}.h).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct

from cntr.linux.named import NamedTuple
from cntr.linux.numbers import MACHINE, UNAME, number

# linux/fcntl.h
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000

_new_tuple = tuple.__new__  # half the time of a class of our own

# linux/stat.h
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000
STATX_ATTR_APPEND = 0x20
STATX_WANTED = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
RWF_APPEND = 0x10  # os has it since Python 3.10

# linux/stat.h: the two magic nanosecond values of utimensat(2)
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

MAX_HANDLE_SZ = 128

_libc = ctypes.CDLL(None, use_errno=True)
_get_errno = ctypes.get_errno
_int, _uint, _long, _charp, _voidp = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p


def _declare(name: str, *arguments: object, result: object = _int) -> object:
    """The C library's function NAME with its argument types: otherwise ctypes would truncate numbers to 32 bits."""
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = result
    return function


_declare("name_to_handle_at", _int, _charp, _voidp, _voidp, _int)
_declare("open_by_handle_at", _int, _voidp, _int)
_declare("getdents64", _int, _voidp, ctypes.c_size_t, result=ctypes.c_ssize_t)
_declare("linkat", _int, _charp, _int, _charp, _int)
_declare("fchownat", _int, _charp, _uint, _uint, _int)
_declare("utimensat", _int, _charp, _voidp, _int)
_declare("fallocate", _int, _int, ctypes.c_int64, ctypes.c_int64)
_declare("syncfs", _int)
_declare("open", _charp, _int)
_declare("umount2", _charp, _int)
_SYS_MKNODAT, _SYS_RENAMEAT2 = number("mknodat"), number("renameat2")


def _fail(call: str, path: object = None) -> OSError:
    number = _get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", None if path is None else str(path))


class Attributes(NamedTuple):
    """struct statx, unpacked in the order of its fields: times in seconds and nanoseconds, sizes in bytes."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int  # of 512 bytes
    attributes_mask: int
    atime: int
    atime_ns: int
    btime: int
    btime_ns: int
    ctime: int
    ctime_ns: int
    mtime: int
    mtime_ns: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int
    mnt_id: int


def as_attributes(fields: tuple[int, ...]) -> Attributes:
    """The fields of statx(2), named."""
    return _new_tuple(Attributes, fields)


_STATX = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ")
_statx_buffer = ctypes.create_string_buffer(256)
# Without argument types, and with a reference to the buffer made once, a call takes two thirds of the time. Every number passed fits in a
# C int: fds, and flags below 1 << 31.
_statx_reference = ctypes.byref(_statx_buffer)
_statx = getattr(_libc, "statx", None) or functools.partial(_libc.syscall, _long(number("statx")))
_unpack_statx = _STATX.unpack_from
_ENTRY = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT


def statx(fd: int, name: bytes = b"", flags: int = _ENTRY | AT_EMPTY_PATH) -> Attributes:
    """statx(2) of (fd, NAME), or of fd itself if NAME is empty. For one thread only: the buffer is shared."""
    if _statx(fd, name, flags, STATX_WANTED, _statx_reference) < 0:
        raise _fail("statx", name)
    return _new_tuple(Attributes, _unpack_statx(_statx_buffer))


def statx_fields(fd: int, name: bytes, flags: int = _ENTRY) -> tuple[int, ...] | None:
    """``statx`` of an entry, as the plain tuple of the fields of ``Attributes``; None if there is no such name.

    For listings and lookups: missing names are as frequent as others, and an exception takes longer.
    """
    if _statx(fd, name, flags, STATX_WANTED, _statx_reference) < 0:
        if _get_errno() == errno.ENOENT:
            return None
        raise _fail("statx", name)
    return _unpack_statx(_statx_buffer)


OPENED = _ENTRY | AT_EMPTY_PATH  # flags of statx(2) for the file behind an fd
_STATX_TYPE_MODE = 3
_unpack_mode = struct.Struct("=8xQ12xH").unpack_from


def mode_and_attributes(fd: int) -> tuple[int, int]:
    """st_mode and the STATX_ATTR_* bits of the file behind fd, by a statx(2) that requests nothing else."""
    if _statx(fd, b"", OPENED, _STATX_TYPE_MODE, _statx_reference) < 0:
        raise _fail("statx")
    attributes, mode = _unpack_mode(_statx_buffer)
    return mode, attributes


_STATX_BLOCKS = 0x400
_unpack_blocks = struct.Struct("=48xQ").unpack_from


def allocated(fd: int) -> int:
    """st_blocks, of 512 bytes, of the file behind fd, as cached here: a network filesystem's server is not asked."""
    if _statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, _STATX_BLOCKS, _statx_reference) < 0:
        raise _fail("statx")
    blocks: int = _unpack_blocks(_statx_buffer)[0]
    return blocks


class Handle(NamedTuple):
    """struct file_handle: returned by name_to_handle_at(2), taken by open_by_handle_at(2)."""

    kind: int
    data: bytes

    @property
    def is_derived(self) -> bool:
        """Whether it is FILEID_INO32_GEN (linux/exportfs.h): inode number and generation, 32 bits each."""
        return self.kind == 1 and len(self.data) == 8


_handle_buffer = ctypes.create_string_buffer(8 + MAX_HANDLE_SZ)
_handle_address = ctypes.addressof(_handle_buffer)
_handle_mount = ctypes.c_int()
_handle_mount_address = ctypes.addressof(_handle_mount)
_HANDLE = struct.Struct("=Ii")


def name_to_handle(fd: int, name: bytes = b"") -> Handle:
    """name_to_handle_at(2) of (fd, NAME), without following a final symbolic link. EOPNOTSUPP: the filesystem has no handles."""
    _HANDLE.pack_into(_handle_buffer, 0, MAX_HANDLE_SZ, 0)
    flags = 0 if name else AT_EMPTY_PATH
    if _libc.name_to_handle_at(fd, name, _handle_address, _handle_mount_address, flags) < 0:
        raise _fail("name_to_handle_at", name)
    size, kind = _HANDLE.unpack_from(_handle_buffer)
    return Handle(kind, _handle_buffer.raw[8 : 8 + size])


def open_by_handle(mount_fd: int, handle: Handle, flags: int, shared: bool = True) -> int:
    """open_by_handle_at(2), close-on-exec. mount_fd: any fd on the mount, not O_PATH. ESTALE: the file is gone.

    shared: use the buffer of the serving thread; False in any other thread.
    """
    buffer = _handle_buffer if shared else ctypes.create_string_buffer(8 + MAX_HANDLE_SZ)
    _HANDLE.pack_into(buffer, 0, len(handle.data), handle.kind)
    address = ctypes.addressof(buffer)
    ctypes.memmove(address + 8, handle.data, len(handle.data))
    fd = int(_libc.open_by_handle_at(mount_fd, address, flags | os.O_CLOEXEC))
    if fd < 0:
        raise _fail("open_by_handle_at")
    return fd


_INO_HANDLE = struct.Struct("=IiII")  # handle_bytes handle_type, then FILEID_INO32_GEN's inode number and generation
_open_by_handle_at = _libc.open_by_handle_at
_O_PATH_CLOEXEC = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_by_ino(mount_fd: int, ino: int, generation: int) -> int:
    """``open_by_handle`` of a FILEID_INO32_GEN handle, as an O_PATH fd. For one thread only: the buffer is shared."""
    _INO_HANDLE.pack_into(_handle_buffer, 0, 8, 1, ino, generation)
    fd = int(_open_by_handle_at(mount_fd, _handle_address, _O_PATH_CLOEXEC))
    if fd < 0:
        raise _fail("open_by_handle_at")
    return fd


#: The number of open_by_handle_at for the machine's native and 32-bit programs; 265 is the generic table's.
OPEN_BY_HANDLE_AT = {"x86_64": (304, 342), "i686": (342,), "armv7l": (371,), "ppc64le": (346,), "s390x": (336,)}.get(
    UNAME, (265, 371)
)


class DirectoryEntry(NamedTuple):
    """struct linux_dirent64. next_offset: the lseek(2) position after this entry."""

    ino: int
    next_offset: int
    kind: int  # DT_*, linux/fs_types.h
    name: bytes


_DIRENT = struct.Struct("=QqHB")
_dents_buffer = ctypes.create_string_buffer(32768)


def getdents(fd: int, shared: bool = True) -> list[DirectoryEntry]:
    """getdents64(2): the next entries of an open directory, with . and ..; empty at the end. shared: see ``open_by_handle``."""
    buffer = _dents_buffer if shared else ctypes.create_string_buffer(32768)
    length = _libc.getdents64(fd, ctypes.addressof(buffer), len(buffer))
    if length < 0:
        raise _fail("getdents64")
    raw = bytes(memoryview(buffer)[:length])
    entries = []
    position = 0
    while position < length:
        ino, offset, size, kind = _DIRENT.unpack_from(raw, position)
        start = position + 19
        entries.append(_new_tuple(DirectoryEntry, (ino, offset, kind, raw[start : raw.index(b"\0", start)])))
        position += size
    return entries


def linkat(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """linkat(2)."""
    if _libc.linkat(old_fd, old, new_fd, new, flags) < 0:
        raise _fail("linkat", new)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2) with RENAME_* flags."""
    if _libc.syscall(_long(_SYS_RENAMEAT2), _long(old_fd), old, _long(new_fd), new, _long(flags)) < 0:
        raise _fail("renameat2", old)


def mknodat(fd: int, name: bytes, mode: int, device: int) -> None:
    """mknodat(2); unlike os.mknod it takes 64-bit device numbers as the kernel gave them."""
    if _libc.syscall(_long(_SYS_MKNODAT), _long(fd), name, _long(mode), ctypes.c_ulong(device & 0xFFFFFFFF)) < 0:
        raise _fail("mknodat", name)


def chown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) on the inode behind any fd, including O_PATH; 0xFFFFFFFF leaves an id unchanged."""
    if _libc.fchownat(fd, b"", uid, gid, AT_EMPTY_PATH) < 0:
        raise _fail("fchownat")


_TIMES = struct.Struct("=qqqq")


def utimens(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) on the file behind any fd; each time is (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT)."""
    times = _TIMES.pack(*atime, *mtime)
    if _libc.utimensat(fd, b"", times, AT_EMPTY_PATH) == 0:
        return
    if _get_errno() != errno.EINVAL or _libc.utimensat(AT_FDCWD, b"/proc/self/fd/%d" % fd, times, 0) < 0:
        raise _fail("utimensat")  # before 5.8 the call does not support AT_EMPTY_PATH


_SYS_fchmodat2 = _long(452)  # on every architecture; kernel 6.6


def chmod(fd: int, mode: int) -> None:
    """fchmodat2(2) on the file behind any fd."""
    if _libc.syscall(_SYS_fchmodat2, fd, b"", mode, AT_EMPTY_PATH) == 0:  # C ints, as the kernel takes them
        return
    if _get_errno() != errno.ENOSYS:
        raise _fail("fchmodat2")
    os.chmod(b"/proc/self/fd/%d" % fd, mode)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_FL_* flags; offset and length in bytes."""
    if _libc.fallocate(fd, mode, offset, length) < 0:
        raise _fail("fallocate")


def open_interruptible(path: bytes, flags: int) -> int:
    """open(2), close-on-exec, interruptible by a signal to the thread (EINTR): os.open would retry."""
    fd = int(_libc.open(path, flags | os.O_CLOEXEC))
    if fd < 0:
        raise _fail("open", path)
    return fd


def syncfs(fd: int) -> None:
    """syncfs(2): sync the whole filesystem that fd (not O_PATH) is on."""
    if _libc.syncfs(fd) < 0:
        raise _fail("syncfs")


def filesystem_magic(fd: int) -> int:
    """statfs(2)'s f_type (linux/magic.h) of the filesystem behind any fd."""
    # struct statfs is 120 bytes on 64-bit machines. f_type comes first; it has 4 bytes on s390x
    buffer = ((_uint if MACHINE == "s390x" else _long) * 64)()
    if _libc.fstatfs(fd, ctypes.byref(buffer)) < 0:
        raise _fail("fstatfs")
    return int(buffer[0])


_libc.ioctl.argtypes = (_int, ctypes.c_ulong, _voidp)


def ioctl_number(fd: int, request: int, data: bytes) -> int:
    """ioctl(2) on a struct that the kernel only reads; returns the call's result, any number."""
    result = int(_libc.ioctl(fd, request, data))
    if result < 0:
        raise _fail("ioctl")
    return result


EVENT = struct.pack("=Q", 1)  # written to an eventfd; a read takes 8 bytes


def eventfd() -> int:
    """eventfd(2), close-on-exec and non-blocking; os has it since Python 3.10."""
    fd = int(_libc.eventfd(0, os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise _fail("eventfd")
    return fd
