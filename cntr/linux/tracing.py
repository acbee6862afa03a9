"""ptrace(2): stopping another process, and reading its seccomp filters and registers.

Constants have the kernel's names (linux/ptrace.h).
"""

from __future__ import annotations

import _ctypes
import errno

from cntr.linux.syscalls import _check, _libc, _long, _ulong

PTRACE_DETACH = 17
PTRACE_GETREGSET, PTRACE_SETREGSET = 0x4204, 0x4205
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_SECCOMP_GET_FILTER, PTRACE_SECCOMP_GET_METADATA = 0x420C, 0x420D
NT_PRSTATUS = 1
WALL = 0x40000000  # waitpid(2) __WALL: threads too


def ptrace_seize(tid: int) -> None:
    """ptrace(2) PTRACE_SEIZE: become the thread's tracer without stopping it."""
    _check(_libc.ptrace(_long(PTRACE_SEIZE), tid, _ulong(0), _ulong(0)), "ptrace(seize)", tid)


def ptrace_interrupt(tid: int) -> None:
    """ptrace(2) PTRACE_INTERRUPT: stop the thread; waitpid(2) reports when it has stopped."""
    _check(_libc.ptrace(_long(PTRACE_INTERRUPT), tid, _ulong(0), _ulong(0)), "ptrace(interrupt)", tid)


def ptrace_detach(tid: int) -> None:
    """ptrace(2) PTRACE_DETACH: resume a stopped thread. One that was stopped by a signal stays stopped."""
    _check(_libc.ptrace(_long(PTRACE_DETACH), tid, _ulong(0), _ulong(0)), "ptrace(detach)", tid)


def get_filter(tid: int, index: int) -> bytes | None:
    """ptrace(2) PTRACE_SECCOMP_GET_FILTER of a stopped thread; None if there is no filter INDEX.

    Index 0 is the oldest (get_nth_filter in kernel/seccomp.c), although ptrace(2) says it is the newest. EACCES: the
    caller lacks CAP_SYS_ADMIN in the initial user namespace, or has a filter itself. EINVAL, EIO: the kernel was built
    without CONFIG_CHECKPOINT_RESTORE. EMEDIUMTYPE: it does not keep the text of this filter.
    """
    where = f"{tid}, filter {index}"
    length = _libc.ptrace(_long(PTRACE_SECCOMP_GET_FILTER), tid, _ulong(index), None)
    if length < 0 and _ctypes.get_errno() == errno.ENOENT:
        return None
    buffer = (_ulong * _check(length, "ptrace(seccomp filter)", where))()
    again = _libc.ptrace(_long(PTRACE_SECCOMP_GET_FILTER), tid, _ulong(index), _ctypes.byref(buffer))
    _check(again, "ptrace(seccomp filter)", where)
    return bytes(buffer)


def filter_flags(tid: int, index: int) -> int:
    """ptrace(2) PTRACE_SECCOMP_GET_METADATA (4.16): the SECCOMP_FILTER_FLAG_* that the kernel reports, which is LOG
    only.
    """
    metadata = (_ulong * 2)(index, 0)  # struct seccomp_metadata: filter_off, flags
    result = _libc.ptrace(_long(PTRACE_SECCOMP_GET_METADATA), tid, _ulong(16), _ctypes.byref(metadata))
    _check(result, "ptrace(seccomp metadata)", f"{tid}, filter {index}")
    return int(metadata[1])


def registers(tid: int) -> bytes:
    """ptrace(2) PTRACE_GETREGSET of a stopped thread: its struct user_regs_struct."""
    buffer = (_ulong * 128)()
    iovec = (_ulong * 2)(_ctypes.addressof(buffer), 1024)
    result = _libc.ptrace(_long(PTRACE_GETREGSET), tid, _ulong(NT_PRSTATUS), _ctypes.byref(iovec))
    _check(result, "ptrace(registers)", tid)
    return bytes(buffer)[: int(iovec[1])]


def set_registers(tid: int, data: bytes) -> None:
    """ptrace(2) PTRACE_SETREGSET of a stopped thread."""
    buffer = (_ulong * (len(data) // 8)).from_buffer_copy(data)
    iovec = (_ulong * 2)(_ctypes.addressof(buffer), len(data))
    result = _libc.ptrace(_long(PTRACE_SETREGSET), tid, _ulong(NT_PRSTATUS), _ctypes.byref(iovec))
    _check(result, "ptrace(set registers)", tid)
