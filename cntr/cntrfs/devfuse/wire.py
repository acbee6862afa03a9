"""The wire format: opcodes, flags and structs of include/uapi/linux/fuse.h (protocol 7.31 to 7.45) as a table.

Every struct is native-endian, and padded as the header pads it. Flags above bit 31 of INIT travel in ``flags2``.
"""

from __future__ import annotations

import struct

KERNEL_VERSION = 7
MINOR_VERSION = 42
OLDEST_MINOR = 23  # fuse_init_out has its present size since then, and notifications exist

# Opcodes
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR, READDIR = 20, 21, 22, 23, 24, 25, 26, 27, 28
RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BMAP = 29, 30, 31, 32, 33, 34, 35, 36, 37
DESTROY, IOCTL, POLL, NOTIFY_REPLY, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2 = 38, 39, 40, 41, 42, 43, 44, 45
LSEEK, COPY_FILE_RANGE, SETUPMAPPING, REMOVEMAPPING, SYNCFS, TMPFILE, STATX = 46, 47, 48, 49, 50, 51, 52
COPY_FILE_RANGE_64 = 53

# INIT flags
ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
FLOCK_LOCKS = 1 << 10
HAS_IOCTL_DIR = 1 << 11
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
ABORT_ERROR = 1 << 21
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
SECURITY_CTX = 1 << 32
CREATE_SUPP_GROUP = 1 << 34
HAS_EXPIRE_ONLY = 1 << 35
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
ALLOW_IDMAP = 1 << 40
OVER_IO_URING = 1 << 41

# Commands of IORING_OP_URING_CMD on /dev/fuse
IO_URING_CMD_REGISTER, IO_URING_CMD_COMMIT_AND_FETCH = 1, 2

# SETATTR valid bits
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME, FATTR_FH = 1, 2, 4, 8, 16, 32, 64
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_LOCKOWNER, FATTR_CTIME, FATTR_KILL_SUIDGID = 128, 256, 512, 1024, 2048

# OPEN answers and arguments
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NONSEEKABLE, FOPEN_CACHE_DIR = 1, 2, 4, 8
FOPEN_NOFLUSH, FOPEN_PARALLEL_DIRECT_WRITES, FOPEN_PASSTHROUGH = 32, 64, 128
OPEN_KILL_SUIDGID = 1

GETATTR_FH = 1
WRITE_CACHE, WRITE_LOCKOWNER, WRITE_KILL_SUIDGID = 1, 2, 4
RELEASE_FLUSH, RELEASE_FLOCK_UNLOCK = 1, 2
LK_FLOCK = 1
FSYNC_FDATASYNC = 1
SETXATTR_ACL_KILL_SGID = 1
IOCTL_DIR = 16
EXT_GROUPS = 32
MAX_NR_SECCTX = 31

# Notifications (written with unique 0 and the code in place of the error)
NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 2, 3

# ioctl(2) on /dev/fuse
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502
BACKING_MAP = struct.Struct("=iIQ")

# Structs: requests
IN_HEADER = struct.Struct("=IIQQIIIHxx")  # len opcode unique nodeid uid gid pid total_extlen (in 8 bytes)
INIT_IN = struct.Struct("=IIII")  # major minor max_readahead flags; then flags2 from 7.36
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
GETATTR_IN = struct.Struct("=IIQ")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused uid gid unused
SETATTR_IN = struct.Struct("=IIQQQQQQIIIIIIII")
MKNOD_IN = struct.Struct("=IIII")
MKDIR_IN = struct.Struct("=II")
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QII")
LINK_IN = struct.Struct("=Q")
OPEN_IN = struct.Struct("=II")
CREATE_IN = struct.Struct("=IIII")  # flags mode umask open_flags
READ_IN = struct.Struct("=QQIIQII")
WRITE_IN = struct.Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
RELEASE_IN = struct.Struct("=QIIQ")
FLUSH_IN = struct.Struct("=QIIQ")
FSYNC_IN = struct.Struct("=QII")
SETXATTR_IN = struct.Struct("=II")
SETXATTR_EXT_IN = struct.Struct("=IIII")
GETXATTR_IN = struct.Struct("=II")
LK_IN = struct.Struct("=QQQQIIII")  # fh owner start end type pid lk_flags padding
INTERRUPT_IN = struct.Struct("=Q")
IOCTL_IN = struct.Struct("=QIIQII")  # fh flags cmd arg in_size out_size
FALLOCATE_IN = struct.Struct("=QQQII")
LSEEK_IN = struct.Struct("=QQII")
COPY_FILE_RANGE_IN = struct.Struct("=QQQQQQQ")
STATX_IN = struct.Struct("=IIQII")
EXT_HEADER = struct.Struct("=II")

# Structs: answers
OUT_HEADER = struct.Struct("=IiQ")
INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_ATTR = "QQQqqqIIIIIIIIII"  # times before 1970 are negative
ATTR = struct.Struct("=" + _ATTR)
ATTR_OUT = struct.Struct("=QII" + _ATTR)
ENTRY_OUT = struct.Struct("=QQQQII" + _ATTR)
OPEN_OUT = struct.Struct("=QIi")
WRITE_OUT = struct.Struct("=II")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
GETXATTR_OUT = struct.Struct("=II")
LK_OUT = struct.Struct("=QQII")
IOCTL_OUT = struct.Struct("=iIII")
LSEEK_OUT = struct.Struct("=Q")
COPY_FILE_RANGE_OUT = struct.Struct("=Q")
DIRENT = struct.Struct("=QQII")
# attr_valid nsec flags spare[2], then struct fuse_statx
STATX_OUT = struct.Struct("=QIIQQ" + "IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII112x")
INVAL_INODE_OUT = struct.Struct("=Qqq")
INVAL_ENTRY_OUT = struct.Struct("=QII")


class Malformed(Exception):
    """A request that no kernel would send: answered with EINVAL."""


_DOTS = (b".", b"..")


def split_strings(body: memoryview | bytes, count: int) -> list[bytes]:
    """COUNT NUL-terminated strings. Raises Malformed if there are fewer."""
    strings = bytes(body).split(b"\0", count)
    if len(strings) <= count:
        raise Malformed("a string without its end")
    return strings[:count]


def split_names(body: memoryview | bytes, count: int) -> list[bytes]:
    """COUNT names of directory entries. Raises Malformed if one could lead out of its directory."""
    names = bytes(body).split(b"\0", count)
    if len(names) <= count:
        raise Malformed("a string without its end")
    del names[count:]
    for name in names:
        if not name or b"/" in name or name in _DOTS:
            raise Malformed("not the name of an entry")
    return names


_pack_dirent = DIRENT.pack
_PADDING = tuple(bytes(-length % 8) for length in range(8))


def pack_dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """struct fuse_dirent and its name, padded to 8 bytes."""
    length = len(name)
    return _pack_dirent(ino, offset, length, kind) + name + _PADDING[length & 7]


def timeout(seconds: float) -> tuple[int, int]:
    """A time as (seconds, nanoseconds)."""
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)


def new_encode_dev(major: int, minor: int) -> int:
    """A device number as FUSE encodes it, in 32 bits (linux/kdev_t.h)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12) & 0xFFFFFFFF


def decode_dev(device: int) -> tuple[int, int]:
    """(major, minor) of a FUSE device number."""
    return (device & 0xFFF00) >> 8, (device & 0xFF) | ((device >> 12) & 0xFFF00)
