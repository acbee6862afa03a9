"""The supported ioctls: file flags and project ids (ioctl_iflags(2)). All others fail with ENOTTY.

Since Linux 5.13 the kernel has checked the caller (owner, CAP_LINUX_IMMUTABLE). It does not pass FIEMAP to FUSE.
"""

from __future__ import annotations

import errno
import fcntl
import os

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

_READS = {FS_IOC_GETFLAGS: 4, FS_IOC_GETVERSION: 4, FS_IOC_FSGETXATTR: 28}  # bytes that the kernel writes
_WRITES = {FS_IOC_SETFLAGS: 4, FS_IOC_FSSETXATTR: 28}
CHANGING = frozenset(_WRITES)
KNOWN = CHANGING | frozenset(_READS)


def perform(fd: int, command: int, data: bytes, out_size: int) -> bytes:
    """Make the ioctl on the backing file; return its output, at most out_size bytes."""
    if command in _READS:
        buffer = bytearray(max(_READS[command], 8))
        fcntl.ioctl(fd, command, buffer)
        return bytes(buffer[: min(out_size, len(buffer))])
    if command in _WRITES:
        if len(data) < _WRITES[command]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fcntl.ioctl(fd, command, data)
        return b""
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
