"""An index of a root directory that may be hostile: facts about each file by path, and reads that never leave the root."""

from __future__ import annotations

import os
import stat

from cntr.errors import CntrError, printable
from cntr.linux import syscalls

LINKS = 40  # symbolic links followed in one path, the kernel's own limit (path_resolution(7))
MOST_ENTRIES = 5_000_000
DEEPEST = 200
_LIMIT = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


READ_MOST = 64 << 20  # bytes


class Entry:
    """What lstat(2) tells about a file; target: of a symbolic link."""

    __slots__ = ("dev", "gid", "ino", "mode", "mtime", "nlink", "rdev", "size", "target", "uid")

    def __init__(self, st: os.stat_result, target: str = "") -> None:
        """mtime in whole seconds; size in bytes, 0 for anything but a regular file."""
        self.mode, self.uid, self.gid, self.nlink, self.rdev = st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_rdev
        self.dev, self.ino, self.mtime, self.target = st.st_dev, st.st_ino, int(st.st_mtime), target
        self.size = st.st_size if stat.S_ISREG(st.st_mode) else 0

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_executable(self) -> bool:
        """Whether it is a regular file that some user may execute."""
        return self.is_file and bool(self.mode & 0o111)


class Tree:
    """The index of one root directory. Paths are absolute and without a trailing slash; the root is "/"."""

    def __init__(self, root_fd: int) -> None:
        """root_fd: of the root directory; the tree owns it."""
        self.root_fd = root_fd
        self.entries: dict[str, Entry] = {}
        self._children: dict[str, list[str]] | None = None
        self._links: dict[tuple[int, int], list[str]] | None = None

    def close(self) -> None:
        """Close the root."""
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    # building

    def scan(self) -> Tree:
        """Read all metadata once. Raises CntrError for a tree that is too large or too deep to be an image."""
        self.entries["/"] = Entry(os.stat(self.root_fd))
        stack = [("", 0)]
        while stack:
            directory, depth = stack.pop()
            if depth > DEEPEST:
                raise CntrError(f"the image has directories more than {DEEPEST} deep", "such an image is malicious")
            fd = self._directory(directory)
            try:
                with os.scandir(fd) as found:
                    for item in found:
                        path = f"{directory}/{item.name}"
                        st = item.stat(follow_symlinks=False)
                        target = os.readlink(item.name, dir_fd=fd) if item.is_symlink() else ""
                        self.entries[path] = Entry(st, target)
                        if stat.S_ISDIR(st.st_mode):
                            stack.append((path, depth + 1))
            finally:
                os.close(fd)
            if len(self.entries) > MOST_ENTRIES:
                raise CntrError(f"the image has more than {MOST_ENTRIES} files", "slim a smaller one")
        return self

    def _directory(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        return syscalls.openat2(self.root_fd, path.lstrip("/") or ".", flags, _LIMIT)

    # lookups

    def __contains__(self, path: str) -> bool:
        """Whether there is such a file, without following symbolic links."""
        return path in self.entries

    def get(self, path: str) -> Entry | None:
        """The file of exactly that path: no symbolic link is followed."""
        return self.entries.get(path)

    def resolve(self, path: str, *, follow: bool = True) -> tuple[str, list[str]]:
        """(real path, the symbolic links passed) of the absolute PATH, within the root; ("", links) if there is no such
        file.

        follow: whether to follow a final symbolic link.
        """
        links: list[str] = []
        done, rest = "", [part for part in path.split("/") if part]
        rest.reverse()
        while rest:
            part = rest.pop()
            if part == ".":
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            here = f"{done}/{part}"
            entry = self.entries.get(here)
            if entry is None:
                return "", links
            if entry.is_link and (rest or follow):
                links.append(here)
                if len(links) > LINKS:
                    return "", links
                if entry.target.startswith("/"):
                    done = ""
                rest += [piece for piece in reversed(entry.target.split("/")) if piece]
                continue
            if rest and not entry.is_directory:
                return "", links
            done = here
        return done or "/", links

    def children(self, path: str) -> list[str]:
        """The full paths of a directory's entries."""
        if self._children is None:
            found: dict[str, list[str]] = {}
            for name in self.entries:
                if name != "/":
                    found.setdefault(name.rpartition("/")[0] or "/", []).append(name)
            self._children = found
        return self._children.get(path, [])

    def below(self, path: str) -> list[str]:
        """All paths below a directory."""
        found, stack = [], [path]
        while stack:
            for name in self.children(stack.pop()):
                found.append(name)
                if self.entries[name].is_directory:
                    stack.append(name)
        return found

    def siblings(self, path: str) -> list[str]:
        """All names of the file that PATH is a hard link of, including PATH."""
        entry = self.entries[path]
        if entry.is_directory or entry.nlink < 2:
            return [path]
        if self._links is None:
            found: dict[tuple[int, int], list[str]] = {}
            for name, one in self.entries.items():
                if one.nlink > 1 and not one.is_directory:
                    found.setdefault((one.dev, one.ino), []).append(name)
            self._links = found
        return self._links.get((entry.dev, entry.ino), [path])

    # reading

    def open(self, path: str) -> int:
        """An fd for reading a regular file; no symbolic link is followed, and nothing else is opened. Raises OSError."""
        entry = self.entries.get(path)
        if entry is None or not entry.is_file:
            raise FileNotFoundError(2, "not a regular file", printable(path))
        return syscalls.openat2(
            self.root_fd, path.lstrip("/"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME, _LIMIT
        )

    def read(self, path: str, limit: int = 1 << 20, offset: int = 0) -> bytes:
        """LIMIT bytes of a regular file from OFFSET, at most READ_MOST; b"" for anything else, and if it cannot be
        read.

        LIMIT and OFFSET may come from the image.
        """
        size = self.entries[path].size if path in self.entries else 0
        if not 0 <= offset < size or limit <= 0:
            return b""
        limit = min(limit, size - offset, READ_MOST)
        try:
            fd = self.open(path)
        except OSError:
            return b""
        try:
            return os.pread(fd, limit, offset)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def text(self, path: str, limit: int = 1 << 20) -> str:
        """The text of the file that PATH resolves to."""
        real, _ = self.resolve(path)
        return self.read(real, limit).decode("utf-8", "surrogateescape") if real else ""
