"""Opens backing files by handle. open_by_handle_at(2) needs CAP_DAC_READ_SEARCH, which a server may have lowered."""

from __future__ import annotations

import os
import zlib

from cntr.cntrfs.backing import AS_IS
from cntr.cntrfs.node import Node, derived_handle, generation_of
from cntr.linux import file_syscalls
from cntr.linux.file_syscalls import Handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class HandleOpener:
    """Opens as O_PATH, which reads nothing and needs no permission on the file. mount_fd: an fd on its mount, not
    O_PATH.
    """

    def __init__(self, raised: AbstractContextManager[None] = AS_IS) -> None:
        """raised: the scope in which the calling thread has the capability."""
        self._raised = raised
        #: (mount_fd, inode number, generation): opens by a handle that consists of these only.
        self.by_ino = file_syscalls.open_by_ino if raised is AS_IS else self._raised_by_ino

    def open(self, mount_fd: int, handle: Handle, shared: bool = True) -> int:
        """Open by HANDLE. Raises OSError (ESTALE: gone)."""
        with self._raised:
            return file_syscalls.open_by_handle(mount_fd, handle, O_PATH, shared)

    def _raised_by_ino(self, mount_fd: int, ino: int, generation: int) -> int:
        with self._raised:
            return file_syscalls.open_by_ino(mount_fd, ino, generation)

    def open_mount(self, path: bytes) -> int:
        """Open directory PATH as a mount_fd, even if others may not read it: nothing is read by this fd."""
        with self._raised:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def matches_any_generation(self, mount_fd: int, handle: Handle) -> bool | None:
        """Whether generation 0 opens the file too. None: it has no other, as what mkfs(8) makes, the root above all."""
        if not handle.is_derived:
            return False
        if handle.data[4:] == bytes(4):
            return None
        ino = int.from_bytes(handle.data[:4], "little")
        try:
            fd = self.open(mount_fd, derived_handle(ino, 0))
        except OSError:
            return False
        try:
            return file_syscalls.statx(fd).ino == ino
        finally:
            os.close(fd)


def take_handle(node: Node, fd: int, name: bytes) -> None:
    """Store the node's generation, and its file handle if the filesystem has handles."""
    if node.mount.any_generation and not node.ino >> 32:
        node.packed_handle = True
        node.generation = generation_of(node.birth)
        return
    try:
        handle = file_syscalls.name_to_handle(fd, name)
    except OSError:
        return
    if handle.is_derived:
        if int.from_bytes(handle.data[:4], "little") != node.ino:
            return  # the name has become another file's
        node.generation = int.from_bytes(handle.data[4:], "little")
        if node.generation:  # generation 0 (mke2fs -d sets it) is reported as 1, from which no handle could be rebuilt
            node.packed_handle = True
            return
    node.handle = handle
    node.generation = zlib.crc32(handle.data) or 1  # the same again when a forgotten node is remade
