"""Attributes of mounts (read-only, nosuid, …): mount_setattr(2), or ``remounting`` where the kernel lacks it."""

from __future__ import annotations

import errno
import os

from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def are_known() -> bool:
    """Whether the kernel has mount_setattr(2)."""
    try:
        syscalls.mount_setattr(-1, "", recursive=False)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def get_ready() -> None:
    """Load what this kernel needs: to be called before entering another root or mount namespace."""
    if not are_known():
        remounting()


def remounting() -> ModuleType:
    """The module for kernels before Linux 5.12."""
    from cntr.linux import remounting as module

    return module


def add(tree_fd: int, attributes: int, userns_fd: int = -1, *, recursive: bool = False) -> None:
    """Add ATTRIBUTES to the detached mount behind TREE_FD, idmapped if USERNS_FD is given. Raises OSError (ENOSYS: not
    possible here).
    """
    idmap = syscalls.MOUNT_ATTR_IDMAP if userns_fd >= 0 else 0
    if _set(tree_fd, recursive=recursive, attr_set=attributes | idmap, userns_fd=max(userns_fd, 0)):
        return
    if userns_fd >= 0:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "mount_setattr")
    remounting().add(tree_fd, attributes, recursive=recursive)


def add_here(fd: int, attributes: int) -> None:
    """Add ATTRIBUTES to the attached mount whose root directory FD is. Raises OSError."""
    if not _set(fd, attr_set=attributes):
        remounting().add_here(fd, attributes)


def add_everywhere(attributes: int, proc_fd: int) -> None:
    """Add ATTRIBUTES to every mount below this process's root. proc_fd: a /proc of its pid namespace. Raises OSError."""
    if not _set(syscalls.AT_FDCWD, "/", recursive=True, attr_set=attributes):
        remounting().add_everywhere(attributes, proc_fd)


def make_private(tree_fd: int) -> None:
    """Make the attached tree behind TREE_FD private: mounts propagate neither into it nor out of it. Raises OSError."""
    if not _set(tree_fd, recursive=True, propagation=syscalls.MS_PRIVATE):
        remounting().make_private(tree_fd)


def _set(fd: int, path: str = "", *, recursive: bool = False, **how: int) -> bool:
    """mount_setattr(2); False if the kernel lacks it. Raises OSError."""
    try:
        syscalls.mount_setattr(fd, path, recursive=recursive, **how)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return False
        raise
    return True
