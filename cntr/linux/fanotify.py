"""fanotify(7) as a recorder uses it: each event carries an open fd of the file that was opened, executed or listed."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from cntr.linux.file_syscalls import _fail, _libc
from cntr.linux.numbers import MACHINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/fanotify.h
FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS = 0x1, 0x2, 0x10, 0x20
FAN_MARK_ADD, FAN_MARK_REMOVE, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0x1, 0x2, 0x10, 0x100
_FAN_MARK_IGNORE_SURV = 0x400 | 0x40
FAN_OPEN, FAN_OPEN_EXEC, FAN_Q_OVERFLOW, FAN_ONDIR = 0x20, 0x1000, 0x4000, 0x40000000
_METADATA = struct.Struct("=IBBHQii")  # event_len vers reserved metadata_len mask fd pid
_BUFFER = 1 << 16


def new_group() -> int:
    """fanotify_init(2): a group whose events hold a read-only fd of the file (CAP_SYS_ADMIN in the initial user
    namespace).

    The fds are opened with O_NONBLOCK and O_NOATIME: opening has no effect on the file, and never waits for a FIFO.
    """
    flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    group = int(_libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME | os.O_LARGEFILE))
    if group < 0:
        raise _fail("fanotify_init")
    return group


def mark_filesystem(group: int, root_fd: int) -> None:
    """fanotify_mark(2): report each open, execution and listing on the filesystem that ROOT_FD is on."""
    mask = FAN_OPEN | FAN_OPEN_EXEC | FAN_ONDIR
    if _libc.fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, root_fd, None) < 0:
        raise _fail("fanotify_mark")


def ignore_mount(group: int, mask: int, fd: int, *, remove: bool = False) -> None:
    """fanotify_mark(2): do not report events in MASK caused through the mount that fd is on, or
    report them again (kernel 6.0).

    fd: not O_PATH.
    """
    flags = FAN_MARK_MOUNT | _FAN_MARK_IGNORE_SURV | (FAN_MARK_REMOVE if remove else FAN_MARK_ADD)
    if _libc.fanotify_mark(group, flags, mask, fd, None) < 0:
        raise _fail("fanotify_mark")


def events(group: int) -> Iterator[tuple[int, int, int]]:
    """Yield (mask, fd, pid) of the pending events; the caller closes the fds. fd -1: events were lost (FAN_Q_OVERFLOW)."""
    while True:
        try:
            data = os.read(group, _BUFFER)
        except BlockingIOError:
            return
        position = 0
        while position + _METADATA.size <= len(data):
            length, version, _, _, mask, fd, pid = _METADATA.unpack_from(data, position)
            if version != 3 or length < _METADATA.size:  # FANOTIFY_METADATA_VERSION
                raise OSError(f"fanotify: events of version {version}, and {sys.byteorder} is what this machine speaks")
            position += length
            yield mask, fd, pid


def filesystem_id(fd: int) -> bytes:
    """statfs(2)'s f_fsid, the 8 bytes that fanotify reports."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) < 0:
        raise _fail("fstatfs")
    start = 48 if MACHINE == "s390x" else 56  # struct statfs of 64-bit machines
    return buffer.raw[start : start + 8]
