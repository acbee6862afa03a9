"""``cntr slim diff``: compares two trees, file by file: kind, owner, mode, time, content, attributes, hard links."""

from __future__ import annotations

import os
import stat

from cntr import images
from cntr.errors import printable
from cntr.slim import sources
from cntr.slim.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.slim.leftovers import Guard

BLOCK = 1 << 20


class Difference:
    """One path that differs. sign: - only in the first, + only in the second, ~ in both; what: what differs."""

    __slots__ = ("path", "sign", "size", "what")

    def __init__(self, sign: str, path: str, what: str, size: int = 0) -> None:
        """size: of the file in bytes."""
        self.sign, self.path, self.what, self.size = sign, path, what, size

    def __str__(self) -> str:
        return f"{self.sign} {printable(self.path)}{f'  ({self.what})' if self.what else ''}"


def unpack_over(reference: str, directory: str) -> None:
    """Unpack the image REFERENCE over the contents of DIRECTORY."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with images.find(reference) as found:
            found.unpack(fd, devices=True)
    finally:
        os.close(fd)


def opened(references: list[str], guard: Guard) -> tuple[Tree, Callable[[], None]]:
    """The tree of one image, or of several, each over the one before; and a function that closes it."""
    if len(references) == 1:
        source = sources.find(references[0], guard)
        return source.tree.scan(), source.close
    root = os.path.join(guard.directory(), "root")
    os.mkdir(root, 0o755)
    for reference in references:
        unpack_over(reference, root)
    tree = Tree(os.open(root, os.O_RDONLY | os.O_DIRECTORY)).scan()
    return tree, tree.close


def trees(first: Tree, second: Tree) -> list[Difference]:
    """All differences, sorted. Sockets are ignored: an archive cannot hold them."""
    found = []
    for path in sorted(first.entries.keys() | second.entries.keys()):
        one, two = first.get(path), second.get(path)
        if (one and stat.S_ISSOCK(one.mode)) or (two and stat.S_ISSOCK(two.mode)):
            continue
        if one is None or two is None:
            there = one or two
            assert there is not None
            found.append(Difference("-" if two is None else "+", path, "", there.size))
            continue
        what = _differs(first, second, path)
        if what:
            found.append(Difference("~", path, what, one.size))
    return found


def _differs(first: Tree, second: Tree, path: str) -> str:
    one, two = first.entries[path], second.entries[path]
    if stat.S_IFMT(one.mode) != stat.S_IFMT(two.mode):
        return "kind"
    if path == "/":  # the engine creates an archive's root
        return "" if one.mode == two.mode and (one.uid, one.gid) == (two.uid, two.gid) else "mode"
    checks = (
        ("mode", one.mode, two.mode),
        ("owner", (one.uid, one.gid), (two.uid, two.gid)),
        ("time", one.mtime, two.mtime),
        ("target", one.target, two.target),
        ("device", one.rdev, two.rdev),
        ("size", one.size, two.size),
    )
    for what, a, b in checks:
        if a != b and not (what == "mode" and one.is_link):
            return what
    if _attributes(first, path) != _attributes(second, path):
        return "attributes"
    if not one.is_directory and first.siblings(path) != second.siblings(path):
        return "names of one file"
    return "content" if one.is_file and one.size and not _same_content(first, second, path) else ""


def _attributes(tree: Tree, path: str) -> dict[str, str]:
    from cntr.slim import writer

    return writer.attributes(tree, path)


def _same_content(first: Tree, second: Tree, path: str) -> bool:
    a, b = first.open(path), second.open(path)
    try:
        offset = 0
        while True:
            one, two = os.pread(a, BLOCK, offset), os.pread(b, BLOCK, offset)
            if one != two:
                return False
            if not one:
                return True
            offset += len(one)
    finally:
        os.close(a)
        os.close(b)
