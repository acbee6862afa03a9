"""Attributes of mounts where the kernel lacks mount_setattr(2) (before Linux 5.12).

mount(2) changes one mount at a time, and only if it is attached in the caller's mount namespace. So a child attaches a
detached mount in a namespace of its own, remounts it there, and sends back a clone, which keeps the attributes. Such a
mount cannot be idmapped.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.linux import procfs, sockets, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# ST_RDONLY, ST_NOSUID, ST_NODEV, ST_NOEXEC of statvfs(3): the same numbers in mount(2) and mount_setattr(2)
_KEPT = 0xF
_MS_REMOUNT, _MS_REC, _MS_PRIVATE = 32, syscalls.MS_REC, syscalls.MS_PRIVATE


def add(tree_fd: int, attributes: int, *, recursive: bool) -> None:
    """Add ATTRIBUTES to the detached mount behind TREE_FD. Raises OSError."""
    fd = sockets.fd_from_child(lambda: _remounted(tree_fd, attributes, recursive), "mount(MS_REMOUNT)")
    os.dup2(fd, tree_fd, inheritable=False)
    os.close(fd)


def add_here(fd: int, attributes: int) -> None:
    """Add ATTRIBUTES to the attached mount whose root directory FD is. Raises OSError."""
    _inside(fd, lambda: _remount(".", attributes))


def add_everywhere(attributes: int, proc_fd: int) -> None:
    """Add ATTRIBUTES to every mount below this process's root. proc_fd: a /proc of its pid namespace. Raises OSError."""
    for path in _mount_points(proc_fd):
        try:
            _remount(path, attributes)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EACCES):
                raise
            # It is gone; or another mount covers that directory, so nobody can reach it.


def make_private(tree_fd: int) -> None:
    """Make the attached tree behind TREE_FD private. Raises OSError."""
    _inside(tree_fd, lambda: syscalls.mount(None, ".", None, _MS_REC | _MS_PRIVATE))


def _remounted(tree_fd: int, attributes: int, recursive: bool) -> int:
    """In a child: return a detached clone with ATTRIBUTES."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    scratch, name = syscalls.new_filesystem("tmpfs", {"mode": "700", "size": "4k"}), f"cntr-{os.getpid()}"
    if stat.S_ISDIR(os.fstat(tree_fd).st_mode):
        os.mkdir(name, dir_fd=scratch)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=scratch))
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    proc_fd = os.open("proc", os.O_PATH | os.O_CLOEXEC, dir_fd=root) if recursive else -1
    syscalls.move_mount(scratch, root, "")
    syscalls.move_mount(tree_fd, scratch, name)
    os.fchdir(scratch)
    _remount(name, attributes)
    if recursive:
        for path in _mount_points(proc_fd):
            if path.startswith(f"/{name}/"):
                _remount(path[1:], attributes)
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    return syscalls.open_tree(syscalls.AT_FDCWD, name, flags)


def _mount_points(proc_fd: int) -> list[str]:
    """List the mount points of this namespace, except autofs: that holds no file, and statvfs(2)
    would have its daemon mount in another namespace (ELOOP here).
    """
    mounts = procfs.mountinfo(procfs.read("self/mountinfo", proc_fd))
    return list(dict.fromkeys(mount.mount_point for mount in mounts if mount.fstype != "autofs"))


def _remount(path: str, attributes: int) -> None:
    flags = os.statvfs(path).f_flag & _KEPT | attributes
    syscalls.mount(None, path, None, _MS_REMOUNT | syscalls.MS_BIND | flags)


def _inside(fd: int, act: Callable[[], None]) -> None:
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(fd)
    act()
    os.fchdir(before)
    os.close(before)
