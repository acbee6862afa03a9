"""Files below a root directory that may be hostile: found by openat2(2), without leaving it, and examined before they are opened."""

from __future__ import annotations

import os
import stat

from cntr.linux import syscalls

IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


def opened(root: int, path: str, flags: int = os.O_PATH) -> int:
    """An fd of PATH below the directory ROOT. Raises OSError."""
    return syscalls.openat2(root, path.lstrip("/") or ".", flags, IN_ROOT)


def status(root: int, path: str) -> os.stat_result | None:
    """stat(2) of PATH; None if it does not exist."""
    try:
        fd = opened(root, path)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def regular(root: int, path: str) -> int:
    """Open a regular file for reading. It is examined first: opening a device has effects. Raises OSError."""
    handle = opened(root, path)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(22, "not a regular file")
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def head(root: int, path: str, size: int) -> bytes:
    """The first SIZE bytes of a regular file. Raises OSError."""
    fd = regular(root, path)
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def make(root: int, relative: str, *, is_dir: bool) -> None:
    """Create a file or directory, and the directories above it. Raises OSError."""
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(22, "a path with ..", relative)
    directory = os.dup(root)
    try:
        for index, part in enumerate(parts):
            so_far = "/".join(parts[: index + 1])
            try:
                fd = opened(root, so_far)
            except FileNotFoundError:
                if index == len(parts) - 1 and not is_dir:
                    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(part, flags, 0o644, dir_fd=directory))
                else:
                    os.mkdir(part, 0o755, dir_fd=directory)
                fd = opened(root, so_far)
            os.close(directory)
            directory = fd
    finally:
        os.close(directory)
