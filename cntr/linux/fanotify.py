"""fanotify(7), for two uses: a recorder, whose events carry an open fd of the file that was opened, executed or listed; and
CntrFS's watch on changes, whose events name directory, entry and file.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from cntr.linux.file_syscalls import _charp, _declare, _fail, _int, _libc, _uint
from cntr.linux.numbers import MACHINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/fanotify.h
FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS = 0x1, 0x2, 0x10, 0x20
FAN_MARK_ADD, FAN_MARK_REMOVE, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0x1, 0x2, 0x10, 0x100
_FAN_MARK_IGNORE_SURV = 0x400 | 0x40
FAN_REPORT_DFID_NAME_TARGET = 0x200 | 0x400 | 0x800 | 0x1000
FAN_MODIFY, FAN_ATTRIB, FAN_CLOSE_WRITE, FAN_MOVED_FROM, FAN_MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
FAN_CREATE, FAN_DELETE = 0x100, 0x200
FAN_OPEN, FAN_OPEN_EXEC, FAN_Q_OVERFLOW, FAN_ONDIR = 0x20, 0x1000, 0x4000, 0x40000000
_declare("fanotify_init", _uint, _uint)
_declare("fanotify_mark", _int, _uint, ctypes.c_uint64, _int, _charp)
_METADATA = struct.Struct("=IBBHQii")  # event_len vers reserved metadata_len mask fd pid
_BUFFER = 1 << 16


def new_group() -> int:
    """fanotify_init(2): a group whose events hold a read-only fd of the file (CAP_SYS_ADMIN in the initial user
    namespace).

    The fds are opened with O_NONBLOCK and O_NOATIME: opening has no effect on the file, and never waits for a FIFO.
    """
    return _group(FAN_UNLIMITED_QUEUE, os.O_NONBLOCK | os.O_NOATIME | os.O_LARGEFILE)


def new_naming_group() -> int:
    """fanotify_init(2): a group that reports directory, name and file of each event (kernel 5.17, CAP_SYS_ADMIN)."""
    return _group(FAN_REPORT_DFID_NAME_TARGET, 0)


def _group(flags: int, event_flags: int) -> int:
    flags |= FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_MARKS
    group = int(_libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | event_flags))
    if group < 0:
        raise _fail("fanotify_init")
    return group


def mark_filesystem(group: int, mask: int, fd: int) -> None:
    """fanotify_mark(2): report the events of MASK on the whole filesystem that fd is on."""
    if _libc.fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, fd, None) < 0:
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
