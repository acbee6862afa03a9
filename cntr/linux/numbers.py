"""System call and ioctl numbers that differ between architectures (asm/unistd.h); from 424 on they are the same on all
except alpha.

For calls without a C library function in every supported version: mknodat since glibc 2.33, statx and renameat2 since
2.28.
"""

from __future__ import annotations

import os
import sys

MACHINES = ("x86_64", "i386", "arm", "ppc64", "s390x", "generic")  # generic: aarch64, riscv64, loongarch64
TABLE = {
    "bpf": (321, 357, 386, 361, 351, 280),
    "keyctl": (250, 288, 311, 271, 280, 219),
    "mknodat": (259, 297, 324, 288, 290, 33),
    "pivot_root": (155, 217, 218, 203, 217, 41),
    "renameat2": (316, 353, 382, 357, 347, 276),
    "seccomp": (317, 354, 383, 358, 348, 277),
    "setgroups": (116, 206, 206, 81, 206, 159),  # with 32-bit ids: setgroups32 on i386 and arm
    "statx": (332, 383, 397, 383, 379, 291),
}
# ioctl(2) requests, and their values on powerpc, whose direction bits differ (asm/ioctl.h, asm/ioctls.h)
IOCTLS = {
    "FIONREAD": (0x541B, 0x4004667F),
    "NS_GET_PARENT": (0xB702, 0x2000B702),
    "NS_GET_USERNS": (0xB701, 0x2000B701),
    "TIOCGPTPEER": (0x5441, 0x20005441),
    "TIOCSCTTY": (0x540E, 0x540E),
}
# 64-bit kernels that run 32-bit programs, possibly this interpreter
NARROW = {"x86_64": "i386", "aarch64": "arm"}
# What uname(2) calls the wide ones under setarch(8) (PER_LINUX32), which a caller can set; a 64-bit program stays one
DISGUISED = {"i686": "x86_64", "armv8l": "aarch64", "ppc": "ppc64", "ppcle": "ppc64le", "s390": "s390x"}
UNAME = os.uname().machine
UNAME = DISGUISED.get(UNAME, UNAME) if sys.maxsize > 1 << 32 else UNAME


def machine(name: str = UNAME, *, wide: bool = sys.maxsize > 1 << 32) -> str:
    """The column of TABLE for uname(2)'s machine; wide: whether this program is a 64-bit one."""
    if not wide:
        name = NARROW.get(name, name)
    if name[:1] == "i" and name[2:] == "86":
        return "i386"
    if name.startswith("arm"):
        return "arm"
    if name.startswith("ppc64"):
        return "ppc64"
    return name if name in MACHINES else "generic"


MACHINE = machine()


def number(call: str) -> int:
    """The number of a system call of TABLE on this machine."""
    return TABLE[call][MACHINES.index(MACHINE)]


def ioctl(request: str, column: str = MACHINE) -> int:
    """The number of an ioctl of IOCTLS on this machine."""
    return IOCTLS[request][column == "ppc64"]
