"""Mounts on which fanotify reports no writes. The kernel writes through them for clients, and so
knows of these writes.

Otherwise every file that a client writes would cause an event for the helper, an invalidation, and
another request for the attributes.
"""

from __future__ import annotations

import os

from cntr.linux import fanotify, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.node import BackingMount

_WRITES = fanotify.FAN_MODIFY | fanotify.FAN_CLOSE_WRITE


class SilentMounts:
    """The silent mounts of a watch's filesystems."""

    def __init__(self, group: int) -> None:
        """group: fanotify's."""
        self._group = group
        self._by_filesystem: dict[bytes, BackingMount] = {}
        self._trees: list[int] = []  # they exist while these fds are open

    def add(self, mount: BackingMount, fsid: bytes) -> None:
        """Make one for a mount that is watched from now on, if possible: a detached copy, which
        nobody else can use.

        A filesystem that appears twice in the tree gets none: writes through one of its mounts must
        be reported to the other.
        """
        if not self.note(mount, fsid):
            return
        tree = -1
        try:
            tree = syscalls.open_tree(mount.fd, b"", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
            syscalls.mount_setattr(tree, b"", recursive=False, propagation=syscalls.MS_PRIVATE)
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        except OSError:  # it belongs to another mount namespace, or is hidden by now
            if tree >= 0:
                os.close(tree)
            return
        self._trees.append(tree)
        try:
            fanotify.ignore_mount(self._group, _WRITES, fd)
        except OSError:
            os.close(fd)
            return
        mount.silent_fd = fd

    def note(self, mount: BackingMount, fsid: bytes) -> bool:
        """Note that a filesystem is in the tree, by a mounted file for example; return whether by this mount alone."""
        first = self._by_filesystem.setdefault(fsid, mount)
        if first is not mount:
            self._remove(first)
        return first is mount

    def _remove(self, mount: BackingMount) -> None:
        if mount.silent_fd >= 0:
            fanotify.ignore_mount(self._group, _WRITES, mount.silent_fd, remove=True)
            os.close(mount.silent_fd)
            mount.silent_fd = -1

    def close(self) -> None:
        """The group has been closed, and what it ignores with it."""
        for mount in self._by_filesystem.values():
            if mount.silent_fd >= 0:
                os.close(mount.silent_fd)
                mount.silent_fd = -1
        for tree in self._trees:
            os.close(tree)
