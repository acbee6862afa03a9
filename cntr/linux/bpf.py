"""bpf(2): a program that decides which devices the processes of a cgroup may open, as engines load for a container."""

from __future__ import annotations

import _ctypes
import resource
import sys

from cntr.linux.numbers import number
from cntr.linux.syscalls import _check, _long, _syscall, _ulong

# linux/bpf.h
BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
BPF_PROG_TYPE_CGROUP_DEVICE, BPF_CGROUP_DEVICE = 15, 6
BPF_F_ALLOW_MULTI = 2  # the programs of the parent cgroups apply as well
_SYS_BPF = number("bpf")

_LOAD, _MOVE, _MOVE_NUMBER, _SHIFT, _AND = 0x61, 0xBF, 0xB7, 0x77, 0x57
_EQUAL, _UNEQUAL, _JUMP, _EXIT = 0x15, 0x55, 0x05, 0x95
_MKNOD, _CHARACTER = 1, 2  # struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor


def _op(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """A struct bpf_insn."""
    registers = to | source << 4 if sys.byteorder == "little" else to << 4 | source
    order = sys.byteorder
    return bytes((code, registers)) + offset.to_bytes(2, order) + value.to_bytes(4, order)


def usual_devices() -> bytes:
    """A program that allows the devices every container has, from null to urandom, tty and the terminals, and no other.

    mknod(2) is allowed for any device, as engines do.
    """
    access, kind, major, minor, terminals = 3, 2, 4, 5, 6
    head = [
        _op(_LOAD, kind, 1, 0),
        _op(_MOVE, access, kind),
        _op(_SHIFT, access, value=16),
        _op(_AND, kind, value=0xFFFF),
        _op(_LOAD, major, 1, 4),
        _op(_LOAD, minor, 1, 8),
        _op(_MOVE, terminals, major),
        _op(_AND, terminals, value=0xF8),
        _op(_MOVE_NUMBER, 0, value=1),
    ]
    jumps = [  # code, register, number, target
        (_EQUAL, access, _MKNOD, "allow"),
        (_UNEQUAL, kind, _CHARACTER, "deny"),
        (_EQUAL, terminals, 136, "allow"),  # to 143: Documentation/admin-guide/devices.txt
        (_EQUAL, major, 5, "of 5"),
        (_UNEQUAL, major, 1, "deny"),
        *((_EQUAL, minor, device, "allow") for device in (3, 5, 7, 8, 9)),
        (_JUMP, 0, 0, "deny"),
        (_EQUAL, minor, 0, "allow"),
        (_EQUAL, minor, 2, "allow"),
    ]
    places = {"of 5": len(jumps) - 2, "deny": len(jumps), "allow": len(jumps) + 1}
    text = [_op(code, to, 0, places[name] - at - 1, value) for at, (code, to, value, name) in enumerate(jumps)]
    return b"".join([*head, *text, _op(_MOVE_NUMBER, 0, value=0), _op(_EXIT)])


def load(program: bytes) -> int:
    """BPF_PROG_LOAD of a device program; returns its fd. Raises OSError."""
    text, licence = (_ulong * (len(program) // 8)).from_buffer_copy(program), (_ulong * 1)()
    order = sys.byteorder
    attributes = b"".join(
        value.to_bytes(size, order)
        for value, size in (
            (BPF_PROG_TYPE_CGROUP_DEVICE, 4),
            (len(program) // 8, 4),
            (_ctypes.addressof(text), 8),
            (_ctypes.addressof(licence), 8),
            (0, 8),  # no log
            (0, 8),
            (0, 8),
            (0, 8),  # its name
            (0, 8),
            (0, 4),
            (BPF_CGROUP_DEVICE, 4),
        )
    )
    try:
        return _bpf(BPF_PROG_LOAD, attributes)
    except PermissionError:
        # Before Linux 5.11 all of a user's programs count as locked memory, of which a container
        # may have 64 KiB.
        limits = _unlimited_memory()
        if limits is None:
            raise
    try:
        return _bpf(BPF_PROG_LOAD, attributes)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)


def _unlimited_memory() -> tuple[int, int] | None:
    """Lift the limit on locked memory; return the old one, None without CAP_SYS_RESOURCE."""
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        return None
    return limits


def attach(program_fd: int, cgroup_fd: int) -> None:
    """BPF_PROG_ATTACH to a version 2 cgroup. Raises OSError."""
    numbers = (cgroup_fd, program_fd, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
    _bpf(BPF_PROG_ATTACH, b"".join(value.to_bytes(4, sys.byteorder) for value in numbers))


def _bpf(command: int, attributes: bytes) -> int:
    buffer = (_ulong * (len(attributes) // 8)).from_buffer_copy(attributes)
    result = _syscall(_long(_SYS_BPF), _long(command), _ctypes.byref(buffer), _ulong(len(attributes)))
    return _check(result, "bpf", f"command {command}")
