"""Removal of a file or a tree below a directory's fd, of any depth: not recursive, as Python limits the recursion."""

from __future__ import annotations

import os
import stat

from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESOLVE = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
)
O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Level:
    """A directory under removal: its parent (an fd), its name there and its path, an fd of it, the
    names left, whether all were removed.
    """

    __slots__ = ("below", "gone", "name", "names", "parent", "path")

    def __init__(self, parent: int, name: bytes, path: bytes) -> None:
        self.parent, self.name, self.path = parent, name, path
        self.below = syscalls.openat2(parent, name, O_DIRECTORY, RESOLVE)
        self.names = [os.fsencode(child) for child in os.listdir(self.below)]
        self.gone = True


def remove(fd: int, name: bytes, path: bytes, spared: Callable[[bytes], bool], forget: Callable[[bytes], None]) -> bool:
    """Remove NAME in the directory FD, whose path is PATH, except what is spared. Return whether it
    is gone. Raises OSError.

    forget: called for each directory before it is removed.
    """
    levels: list[Level] = []
    try:
        while True:
            gone = _unlink(fd, name, path, spared)
            if gone is None:
                levels.append(Level(fd, name, path))
            elif levels:
                levels[-1].gone &= gone
            else:
                return gone
            while levels and not levels[-1].names:
                level = levels.pop()
                os.close(level.below)
                gone = level.gone and not spared(level.path)
                if gone:
                    forget(level.path)
                    os.rmdir(level.name, dir_fd=level.parent)
                if not levels:
                    return gone
                levels[-1].gone &= gone
            fd, name = levels[-1].below, levels[-1].names.pop()
            path = levels[-1].path + b"/" + name
    finally:
        for level in levels:
            os.close(level.below)


def _unlink(fd: int, name: bytes, path: bytes, spared: Callable[[bytes], bool]) -> bool | None:
    """Return whether it is gone, None for a directory."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return None
        if spared(path):
            return False
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    return True
