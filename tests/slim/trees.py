"""Small root directories and images to split."""

from __future__ import annotations

import os
import pathlib

from cntr.slim.accesses import Accesses
from cntr.slim.rules import Choices, Context
from cntr.slim.tree import Tree


def make(root: pathlib.Path, files: dict[str, object]) -> Tree:
    """Make a tree of FILES: path → text, bytes, ("link", target), or None for a directory; text with a shebang is
    executable.
    """
    for name, what in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.mkdir(exist_ok=True)
        elif isinstance(what, tuple):
            os.symlink(what[1], path)
        else:
            data = what.encode() if isinstance(what, str) else what
            path.write_bytes(data)
            path.chmod(0o755 if data[:2] in (b"#!", b"\x7fE") else 0o644)
    return scanned(root)


def scanned(root: pathlib.Path) -> Tree:
    return Tree(os.open(root, os.O_RDONLY | os.O_DIRECTORY)).scan()


def context(tree: Tree, used: dict[str, str] | None = None, settings: dict | None = None) -> Context:
    """used: path → kind."""
    accesses = Accesses()
    for path, kind in (used or {}).items():
        accesses.add(kind, path)
    return Context(tree, settings or {}, accesses, Choices())
