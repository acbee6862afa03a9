"""Keeps CAP_SYS_PTRACE in every process of an attach session, whatever a tool does to itself.

The kernel's ptrace check (ptrace(2)) refuses the container's processes access to /proc/PID/{root,cwd,fd,mem,…} of a
process whose permitted set holds a capability that theirs lacks: CAP_SYS_PTRACE. But tools drop capabilities (ping,
setpriv, su), and a user namespace that the session makes or joins is owned by its creator's uid. So before its
first exec every process of a session gets:

- CAP_SYS_PTRACE in the ambient set (capabilities(7)), so execve(2) keeps it for any uid
- SECBIT_NO_SETUID_FIXUP, locked: changing the uid does not change the sets. The other capabilities go at an exec as non-root
- no_new_privs: set-id bits and file capabilities, which would clear the ambient set, have no effect
- a seccomp filter: capset(2) and the calls that lower the ambient set return success and do nothing; no user namespace can
  be made or joined; keyrings are out of reach (keyrings(7)); nothing can be typed into a terminal by ioctl (TIOCSTI, TIOCLINUX)

With a tools view the filter also refuses what would bypass the view for a session with the container's
CAP_DAC_READ_SEARCH or CAP_SYS_ADMIN: opening a file by handle (open_by_handle_at(2)), whatever directories hide it;
changes of mounts, which could remove a cover or an id map (open_tree_attr(2), Linux 6.15); ioctls that stop a whole
file system.

A session in the host's pid namespace has no CAP_SYS_PTRACE; it gets only no_new_privs and the refusals.

Tested in tests/nest/test_guard.py.
"""

from __future__ import annotations

import os
import sys

from cntr.attach.target import CAP_SYS_PTRACE
from cntr.linux import process, seccomp, syscalls
from cntr.linux.numbers import UNAME

SECUREBITS = process.SECBIT_NO_SETUID_FIXUP | process.SECBIT_NO_SETUID_FIXUP_LOCKED
_PTRACE = CAP_SYS_PTRACE.bit_length() - 1

# linux/audit.h; the numbers of capset clone setns prctl ioctl unshare add_key request_key keyctl, and which
# argument of clone(2) holds the flags
_X86_64 = (0xC000003E, (126, 56, 308, 157, 16, 272, 248, 249, 250), 0)
_I386 = (0x40000003, (185, 120, 346, 172, 54, 310, 286, 287, 288), 0)
_ARM = (0x40000028, (185, 120, 375, 172, 54, 337, 309, 310, 311), 0)
_GENERIC = (91, 220, 268, 167, 29, 97, 217, 218, 219)
_MACHINES: dict[str, tuple[tuple[int, tuple[int, ...], int], ...]] = {
    "x86_64": (_X86_64, _I386),
    "aarch64": ((0xC00000B7, _GENERIC, 0), _ARM),
    "riscv64": ((0xC00000F3, _GENERIC, 0),),
    "loongarch64": ((0xC0000102, _GENERIC, 0),),
    "ppc64le": ((0xC0000015, (184, 120, 350, 171, 54, 282, 269, 270, 271), 0),),
    "s390x": ((0x80000016, (185, 120, 339, 172, 54, 303, 278, 279, 280), 1),),
}
_CLONE3 = 435  # on all machines
# open_by_handle_at mount umount2 pivot_root, and umount if the machine has it
_AROUND = {
    0xC000003E: (304, 165, 166, 155),
    0x40000003: (342, 21, 52, 217, 22),
    0x40000028: (371, 21, 52, 218),
    0xC0000015: (346, 21, 52, 203, 22),
    0x80000016: (336, 21, 52, 217, 22),
}
_AROUND_GENERIC = (265, 40, 39, 41)
# open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr open_tree_attr: the same on all machines
_AROUND_NEW = (428, 429, 430, 431, 432, 433, 442, 467)
# FIFREEZE FITHAW; FS_IOC_SHUTDOWN, as powerpc has it too; XFS_IOC_OPEN_BY_HANDLE
_FILE_SYSTEM_IOCTLS = (0xC0045877, 0xC0045878, 0x8004587D, 0x4004587D, 0xC038586B)
_X32_BIT = 0x40000000
_EPERM, _ENOSYS = 1, 38
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # asm-generic/ioctls.h; the machines above use the same values

_ALLOW = seccomp.SECCOMP_RET_ALLOW
_DONE = seccomp.SECCOMP_RET_ERRNO  # errno 0: the call returns 0 without effect
_REFUSE = seccomp.SECCOMP_RET_ERRNO | _EPERM
_UNKNOWN = seccomp.SECCOMP_RET_ERRNO | _ENOSYS


def program(machine: str = UNAME, *, keep: bool = True, view: bool = True) -> bytes:
    """Build the filter. Raises OSError(ENOSYS) on a machine whose call numbers are not known here.

    keep: whether CAP_SYS_PTRACE is kept; view: whether the root is the tools view. A call by a foreign ABI kills
    the process.
    """
    if machine not in _MACHINES:
        raise OSError(_ENOSYS, f"{os.strerror(_ENOSYS)}: no filter of a session's system calls for {machine}")
    found = [_load(_ARCH)]
    for arch, numbers, flags_argument in _MACHINES[machine]:
        block = _of_one_abi(numbers, flags_argument, keep=keep, x32=machine == "x86_64" and arch == _X86_64[0])
        if view:
            block = [*_around_the_view(arch, numbers[4]), *block]
        # A conditional jump can skip at most 255 instructions; these blocks are far shorter.
        found += [_op(seccomp.BPF_JEQ_K, arch, 0, len(block)), *block]
    return b"".join([*found, _return(seccomp.SECCOMP_RET_KILL_PROCESS)])


def install(*, keep: bool = True, view: bool = True) -> None:
    """Install the filter in a process about to become the session's, under no_new_privs. Raises OSError."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(program(keep=keep, view=view))


_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data


def _of_one_abi(numbers: tuple[int, ...], flags_argument: int, *, keep: bool, x32: bool) -> list[bytes]:
    capset, clone, setns, prctl, ioctl, unshare, *keys = numbers
    newuser = syscalls.CLONE_NEWUSER
    found = [_load(_NUMBER)]
    if x32:  # x32 numbers mean other calls; Debian and most distributions do not build x32
        found += [_op(seccomp.BPF_JGE_K, _X32_BIT, 0, 1), _return(_UNKNOWN)]
    bodies = {
        # In a container without a user namespace, a uid's keyrings are the host's.
        **{number: [_return(_REFUSE)] for number in keys},
        # A filter cannot read its flags, which are in memory. On ENOSYS the C library falls back to clone(2).
        _CLONE3: [_return(_UNKNOWN)],
        clone: [_argument(flags_argument), *_if_set(newuser), _return(_ALLOW)],
        unshare: [_argument(0), *_if_set(newuser), _return(_ALLOW)],
        # Type 0 joins a namespace of any type.
        setns: [_argument(1), *_if(0, _REFUSE), *_if_set(newuser), _return(_ALLOW)],
        ioctl: [_argument(1), *_if(_TIOCSTI, _REFUSE), *_if(_TIOCLINUX, _REFUSE), _return(_ALLOW)],
    }
    if keep:
        bodies |= {capset: [_return(_DONE)], prctl: _ambient()}
    for number, body in bodies.items():
        found += [_op(seccomp.BPF_JEQ_K, number, 0, len(body)), *body]
    return [*found, _return(_ALLOW)]


def _around_the_view(arch: int, ioctl: int) -> list[bytes]:
    found = [_load(_NUMBER)]
    for number in (*_AROUND.get(arch, _AROUND_GENERIC), *_AROUND_NEW):
        found += _if(number, _REFUSE)
    refused = [_argument(1), *(one for value in _FILE_SYSTEM_IOCTLS for one in _if(value, _REFUSE))]
    return [*found, _op(seccomp.BPF_JEQ_K, ioctl, 0, len(refused)), *refused]


def _ambient() -> list[bytes]:
    """prctl(2): PR_CAP_AMBIENT_CLEAR_ALL, and PR_CAP_AMBIENT_LOWER of CAP_SYS_PTRACE, succeed without effect."""
    lower = [_argument(2), *_if(_PTRACE, _DONE)]
    which = [_argument(1), *_if(syscalls.PR_CAP_AMBIENT_CLEAR_ALL, _DONE)]
    which += [_op(seccomp.BPF_JEQ_K, syscalls.PR_CAP_AMBIENT_LOWER, 0, len(lower)), *lower]
    return [_argument(0), _op(seccomp.BPF_JEQ_K, syscalls.PR_CAP_AMBIENT, 0, len(which)), *which, _return(_ALLOW)]


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """A struct sock_filter; yes, no: how many instructions the jump skips."""
    order = sys.byteorder
    return code.to_bytes(2, order) + bytes((yes, no)) + k.to_bytes(4, order)


def _load(offset: int) -> bytes:
    return _op(seccomp.BPF_LD_W_ABS, offset)


def _argument(index: int) -> bytes:
    """Load the lower 32 bits of an argument: the kernel ignores the rest in flags, options and ioctl numbers
    (CVE-2019-10063).
    """
    return _load(16 + 8 * index + (4 if sys.byteorder == "big" else 0))


def _return(action: int) -> bytes:
    return _op(seccomp.BPF_RET_K, action)


def _if(value: int, action: int) -> list[bytes]:
    return [_op(seccomp.BPF_JEQ_K, value, 0, 1), _return(action)]


def _if_set(bits: int) -> list[bytes]:
    return [_op(seccomp.BPF_JSET_K, bits, 0, 1), _return(_REFUSE)]
