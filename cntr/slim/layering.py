"""``--layers 2``: puts the application in a layer of its own, so that a rebuild of it does not change the system's
layer.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context


def parts(context: Context, count: int) -> list[list[str]]:
    """The kept paths as COUNT lists, the lowest layer's first; one list if there is no application, or nothing else.

    A layer also has the parent directories of its files: an engine would create missing ones with other owners and
    modes.
    """
    tree, kept = context.tree, context.kept
    files = [path for path in kept if not tree.entries[path].is_directory]
    own = {path for path in files if all(name in context.application for name in tree.siblings(path))}
    if count < 2 or not own or len(own) == len(files):
        return [list(kept)]
    above_own = _above(own)
    above_system = _above(set(files) - own)
    only_own = above_own - above_system
    system: list[str] = []
    application: list[str] = []
    for path in kept:
        if not tree.entries[path].is_directory:
            (application if path in own else system).append(path)
        elif _is_below(path, only_own):
            application.append(path)
        else:
            system.append(path)
            if path in above_own:
                application.append(path)
    return [system, application]


def _above(paths: set[str]) -> set[str]:
    """The parent directories of PATHS."""
    found: set[str] = set()
    for path in paths:
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            if path in found:
                break
            found.add(path)
    return found


def _is_below(path: str, directories: set[str]) -> bool:
    """Whether PATH is one of the directories or below one."""
    while path != "/":
        if path in directories:
            return True
        path = path.rpartition("/")[0] or "/"
    return False
