"""Symbolic links that do not lead to a regular file: /dev/stdout, devices, FIFOs; and file systems that hold no files.

A copy never takes the place of such a link, and never carries one off for the file that its name promises.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.cp import stream
from cntr.linux import kernelfs, syscalls

MAX_HOPS = 40  # links in a chain that the kernel follows (path_resolution(7))


def stands_for(dir_fd: int, name: bytes) -> str:
    """What the symbolic link NAME stands for, where that is no file and no directory; "" for any other link.

    A link into /proc may dangle here and be somebody's standard output there: we are in none of the container's pid namespaces.
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
    """Whether ELOOP is the links' own, and not that of a link of /proc that must not be followed."""
    try:
        os.close(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=dir_fd))
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _ends_in_kernel(dir_fd: int, name: bytes) -> bool:
    """Whether a chain of links that leads to nothing leads to nothing of /proc, /dev/pts and the like."""
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
    """Whether the deepest directory of PATH that exists is on such a file system."""
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
