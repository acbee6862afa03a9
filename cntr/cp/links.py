"""Symbolic links that lead to something other than a regular file or directory: /dev/stdout, devices, FIFOs, kernel
file systems.

A copy never replaces such a link, and never copies the link as if it were the file that its name suggests.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.cp import stream
from cntr.linux import kernelfs, syscalls

MAX_HOPS = 40  # symbolic links that the kernel follows in one path (path_resolution(7))


def stands_for(dir_fd: int, name: bytes) -> str:
    """What the symbolic link NAME leads to if that is neither file nor directory; "" for any other link.

    A link into /proc may dangle here and be some process's standard output there: this process is in no pid namespace
    of the container.
    """
    try:
        fd = syscalls.openat2(dir_fd, name, os.O_PATH, syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno == errno.ELOOP and not _loops(dir_fd, name):
            return "a symbolic link to an open file of a process"
        return "a symbolic link into the kernel's file systems" if _ends_in_kernel(dir_fd, name) else ""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return ""
        return f"a symbolic link to {stream.kind_of(mode)}"
    finally:
        os.close(fd)


def _loops(dir_fd: int, name: bytes) -> bool:
    """Whether ELOOP comes from a cycle of links, not from a link in /proc that must not be followed."""
    try:
        os.close(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=dir_fd))
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _ends_in_kernel(dir_fd: int, name: bytes) -> bool:
    """Whether a dangling chain of links ends in /proc, /dev/pts or a similar file system."""
    path = name
    for _ in range(MAX_HOPS):
        try:
            target = os.readlink(path, dir_fd=dir_fd)
        except OSError:
            return False
        path = os.path.join(os.path.dirname(path), target)
        if path.startswith(b"/proc/") or _is_below_kernels(dir_fd, path):
            return True
    return False


def _is_below_kernels(dir_fd: int, path: bytes) -> bool:
    """Whether the deepest existing directory of PATH is on such a file system."""
    while path not in (b"", b"/"):
        try:
            fd = syscalls.openat2(dir_fd, path, os.O_PATH, syscalls.RESOLVE_NO_MAGICLINKS)
        except OSError:
            path = os.path.dirname(path)
            continue
        try:
            return kernelfs.holds(fd)
        finally:
            os.close(fd)
    return False
