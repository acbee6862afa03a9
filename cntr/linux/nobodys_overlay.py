"""An overlay of one tree that shows only what everybody may read, for file systems that cannot be idmapped (such as
overlayfs).

overlayfs checks each access twice: against the caller, and against the credentials of whoever mounted it ("Permission
model" in its documentation). Here the mounter has an id that no file has, and no capability outside its own user
namespace. So only the permissions for others count, whatever the caller holds. FIFOs, sockets and locks are the
overlay's own. Needs Linux 5.11.
"""

from __future__ import annotations

import os

from cntr.linux import sockets, syscalls
from cntr.linux.namespaces import NO_FILES_ID


def make(tree_fd: int, userns_fd: int) -> int:
    """Return a detached mount of it. Raises OSError.

    tree_fd: a detached mount of its own, a directory; userns_fd: result of ``namespaces.nobody``.
    """
    return sockets.fd_from_child(lambda: _mount(tree_fd, userns_fd), "overlay")


def _mount(tree_fd: int, userns_fd: int) -> int:
    """In a child, in the user namespace: mount it in a mount namespace that holds only the tree, because inherited
    mounts are locked.
    """
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    scratch = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "4k"})
    for name in ("tree", "empty"):
        os.mkdir(name, 0o755, dir_fd=scratch)
    syscalls.move_mount(scratch, syscalls.AT_FDCWD, "/")
    syscalls.move_mount(tree_fd, scratch, "tree")
    os.fchdir(scratch)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    syscalls.setns(userns_fd, syscalls.CLONE_NEWUSER)
    os.setgroups([])
    os.setresgid(NO_FILES_ID, NO_FILES_ID, NO_FILES_ID)
    os.setresuid(NO_FILES_ID, NO_FILES_ID, NO_FILES_ID)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    return syscalls.new_filesystem("overlay", {"lowerdir": "/tree:/empty"})
