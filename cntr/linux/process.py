"""Attributes of a process other than its ids: secure bits, limits, personality, keyring, and the memory of its command line and
environment.

Constants have the kernel's names (linux/{prctl,securebits,keyctl,personality,resource}.h).
"""

from __future__ import annotations

import _ctypes
import os

from cntr.linux.numbers import number
from cntr.linux.syscalls import _check, _libc, _long, _syscall, _ulong, prctl

# linux/prctl.h
PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28

# linux/securebits.h: each bit, and the next one, which locks it
SECBIT_NO_SETUID_FIXUP, SECBIT_NO_SETUID_FIXUP_LOCKED = 1 << 2, 1 << 3

# linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = number("keyctl")

# asm-generic/resource.h, in numerical order
RLIMITS = ("CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME").split()
_NO_LIMIT = (1 << 64) - 1


def securebits() -> int:
    """prctl(2) PR_GET_SECUREBITS: SECBIT_* of the calling thread."""
    return prctl(PR_GET_SECUREBITS)


def set_securebits(bits: int) -> None:
    """prctl(2) PR_SET_SECUREBITS: needs CAP_SETPCAP. EPERM also for a locked bit."""
    prctl(PR_SET_SECUREBITS, bits)


def limits(which: int, new: tuple[int, int] | None = None) -> tuple[int, int]:
    """prlimit(2) of the calling process: return the (soft, hard) limits of a resource, -1 for none,
    and set NEW.

    The module resource does the same, but is a shared library: five more mappings to load, and to
    copy at each fork.
    """
    before = (_ulong * 2)()
    after = _ctypes.byref((_ulong * 2)(*(value & _NO_LIMIT for value in new))) if new else None
    _check(_libc.prlimit(0, which, after, _ctypes.byref(before)), f"prlimit({which})")
    soft, hard = (-1 if value == _NO_LIMIT else int(value) for value in before)
    return soft, hard


def set_personality(persona: int) -> None:
    """personality(2): the execution domain (PER_LINUX32) and flags (ADDR_NO_RANDOMIZE) that execve(2) passes on."""
    _check(_libc.personality(_ulong(persona)), "personality")


def join_new_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a new, empty, anonymous session keyring. ENOSYS: a kernel without keys."""
    result = _syscall(_long(_SYS_KEYCTL), _long(KEYCTL_JOIN_SESSION_KEYRING), None, _long(0), _long(0), _long(0))
    _check(result, "keyctl(new session keyring)")


def command_line_memory(stat: str) -> tuple[int, int, int, int]:
    """Start and end of a process's arguments and of its environment: fields 48 to 51 of /proc/PID/stat, addresses in
    its memory.
    """
    start, end, environment, environment_end = (int(word) for word in stat.rpartition(")")[2].split()[45:49])
    return start, end, environment, environment_end


def wipe_command_line(memory: tuple[int, int, int, int], name: bytes = b"cntr") -> None:
    """Overwrite what /proc/PID/cmdline and environ of the calling process show: cmdline becomes NAME, environ becomes
    empty.

    memory: ``command_line_memory`` of /proc/self/stat. It stays the same across fork(2), so it can be read while the
    host's /proc is still mounted. The C library's environment is cleared, since its strings are in that memory.
    """
    _libc.clearenv()
    start, end, environment, environment_end = memory
    for first, last in ((start, end), (environment, environment_end)):
        if 0 < first < last:
            _libc.memset(_ulong(first), 0, _ulong(last - first))
    # proc(5): cmdline continues into the environment if its last byte is not 0
    kept = name[: max(0, end - start - 1)]
    if kept:
        _libc.memcpy(_ulong(start), kept, _ulong(len(kept)))


def replace_stdio() -> None:
    """Replace fds 0, 1 and 2 by /dev/null: a reader of our output (a pipe, ssh) waits until the last copy is closed."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
