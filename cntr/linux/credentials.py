"""Credentials of the calling thread, by which a server acts for a client: filesystem ids, groups, capabilities.

Every function raises OSError with the kernel's errno, unless it says otherwise.
"""

from __future__ import annotations

import ctypes
import struct

from cntr.linux.file_syscalls import _declare, _fail, _libc, _long, _uint
from cntr.linux.numbers import number

# linux/capability.h
CAP_DAC_READ_SEARCH = 2
CAP_FSETID = 4
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
# The C library's setgroups() changes every thread, so the system call is made directly.
_SYS_SETGROUPS = number("setgroups")
_setfsuid = _declare("setfsuid", _uint)
_setfsgid = _declare("setfsgid", _uint)


def setfsuid(uid: int) -> int:
    """setfsuid(2): leaving 0 drops the filesystem capabilities from the effective set, returning to 0 raises them.

    Returns the previous id. It cannot fail: 0xFFFFFFFF, or an id that is not mapped here, changes nothing.
    """
    return int(_libc.setfsuid(uid))


_raw_setfsuid, _raw_capset = _libc.setfsuid, _libc.capset


def become(uid: int, packed: bytes) -> None:
    """setfsuid(2), then capset(2) on the calling thread: in one function, as each creation of a file needs it."""
    _raw_setfsuid(uid)
    if _raw_capset(_cap_header, packed) < 0:
        raise _fail("capset")


def setfsgid(gid: int) -> int:
    """setfsgid(2), as ``setfsuid``."""
    return int(_libc.setfsgid(gid))


def setgroups(groups: tuple[int, ...]) -> None:
    """setgroups(2) for the calling thread only."""
    array = (_uint * len(groups))(*groups)
    if _libc.syscall(_long(_SYS_SETGROUPS), ctypes.c_size_t(len(groups)), ctypes.byref(array)) < 0:
        raise _fail("setgroups")


_cap_header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
_CAPS = struct.Struct("=6I")


def capget() -> tuple[int, int, int]:
    """capget(2): the calling thread's effective, permitted and inheritable masks."""
    header, data = ctypes.create_string_buffer(_cap_header, 8), ctypes.create_string_buffer(24)
    if _libc.capget(header, data) < 0:
        raise _fail("capget")
    values = _CAPS.unpack(data.raw)
    return values[0] | values[3] << 32, values[1] | values[4] << 32, values[2] | values[5] << 32


def pack_capabilities(effective: int, permitted: int, inheritable: int) -> bytes:
    """The argument of ``capset``."""
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    return _CAPS.pack(*low, *high)


def capset(packed: bytes) -> None:
    """capset(2) on the calling thread."""
    if _libc.capset(_cap_header, packed) < 0:
        raise _fail("capset")
