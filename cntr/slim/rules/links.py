"""Symbolic links: those that lead to kept files or directories, and those that lead out of the image (to /dev, /proc, a
volume).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found

NAME = "links"
SUMMARY = "symbolic links to kept files and to directories, links out of the image; every directory; all names of a file with several"


def closing(context: Context) -> Found:
    """Every directory, and the links."""
    tree = context.tree
    for path, entry in tree.entries.items():
        if entry.is_directory:
            yield path, "every directory stays, with its owner, mode and time"
        elif entry.is_link and path not in context.kept:
            real, _ = tree.resolve(path)
            if not real:
                yield path, f"leads out of the image, to {entry.target}"
            elif tree.entries[real].is_directory:
                yield path, f"leads to the directory {real}"
            elif real in context.kept:
                yield path, f"leads to {real}, which is kept"
