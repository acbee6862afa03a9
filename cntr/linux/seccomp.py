"""Seccomp filters: installing them in this process. Those of another one are read by ptrace(2), see tracing.py.

A filter is bytes: instructions of 8 bytes each (struct sock_filter of linux/filter.h, in the machine's byte order).
Constants have the kernel's names (linux/{seccomp,bpf_common,audit}.h).
"""

from __future__ import annotations

import _ctypes
import sys

from cntr.linux.numbers import number
from cntr.linux.syscalls import _check, _long, _packed, _syscall, _ulong

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ACTION_FULL = 0xFFFF0000

# linux/bpf_common.h, combined
BPF_LD_W_ABS = 0x20
BPF_JEQ_K, BPF_JGE_K, BPF_JSET_K = 0x15, 0x35, 0x45
BPF_RET_K = 0x06

INSTRUCTION = 8  # bytes of a struct sock_filter
_SYS_SECCOMP = number("seccomp")


def install(program: bytes, flags: int = 0) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER: add a filter to the calling thread, which must be the only one.

    EACCES: neither no_new_privs nor CAP_SYS_ADMIN in the own user namespace. EINVAL: an invalid program. ENOMEM:
    filters of more than 32768 instructions in total.
    """
    length = len(program) // INSTRUCTION
    text = (_ulong * length).from_buffer_copy(program)
    # struct sock_fprog: an unsigned short, padding, and the program's address
    head = int.from_bytes(_packed(2, length, 0, 0, 0), sys.byteorder)
    fprog = (_ulong * 2)(head, _ctypes.addressof(text))
    result = _syscall(_long(_SYS_SECCOMP), _ulong(SECCOMP_SET_MODE_FILTER), _ulong(flags), _ctypes.byref(fprog))
    _check(result, "seccomp(filter)")
