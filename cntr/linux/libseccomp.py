"""libseccomp (seccomp_init(3) and others): compiles a profile's rules to the BPF program that seccomp(2) takes."""

from __future__ import annotations

import ctypes
import os

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATIONS = {
    **{"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6},
    "SCMP_CMP_MASKED_EQ": 7,
}
NR_SCMP_ERROR = -1
Comparison = tuple[int, int, int, int]  # argument, operation, value, second value


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def load() -> ctypes.CDLL | None:
    """The library, None if it is not installed."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Compare),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def compile_rules(
    default: int, architectures: list[str], rules: list[tuple[int, list[str], list[Comparison]]], library: ctypes.CDLL
) -> bytes:
    """The program of RULES, each (action, names of system calls, comparisons). Unknown names are skipped. Raises
    OSError.

    architectures: libseccomp's names (x86, x32, arm) of what runs here besides the native one.
    """
    context = library.seccomp_init(default)
    if not context:
        raise OSError(22, "seccomp_init: Invalid argument")
    try:
        for name in architectures:
            token = library.seccomp_arch_resolve_name(name.encode())
            result = library.seccomp_arch_add(context, token & 0xFFFFFFFF) if token else 0
            if result not in (0, -17):  # EEXIST: the native one
                raise OSError(-result, f"seccomp_arch_add: {os.strerror(-result)}", name)
        for action, names, comparisons in rules:
            if action == default:
                continue  # the library rejects a rule that changes nothing
            array = (_Compare * max(1, len(comparisons)))(*[_Compare(*row) for row in comparisons])
            for name in names:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number == NR_SCMP_ERROR:
                    continue
                result = library.seccomp_rule_add_array(context, action, number, len(comparisons), array)
                if result not in (0, -17, -33):  # EEXIST: a duplicate; EDOM: not of this architecture
                    raise OSError(-result, f"seccomp_rule_add: {os.strerror(-result)}", name)
        fd = os.memfd_create("cntr-seccomp", os.MFD_CLOEXEC)
        try:
            result = library.seccomp_export_bpf(context, fd)
            if result:
                raise OSError(-result, f"seccomp_export_bpf: {os.strerror(-result)}")
            return os.pread(fd, 1 << 20, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)
