"""``--layers 2``: the application in a layer of its own, so that another build of it leaves the system's layer as it is."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context


def parts(context: Context, count: int) -> list[list[str]]:
    """The kept paths, as COUNT lists, the lowest layer's first; one list where there is no application to be told, or nothing else.

    A layer holds the directories above its files too: an engine makes what is missing there with other owners and modes.
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
    """The directories above."""
    found: set[str] = set()
    for path in paths:
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            if path in found:
                break
            found.add(path)
    return found


def _is_below(path: str, directories: set[str]) -> bool:
    """Whether PATH is one of them or in one."""
    while path != "/":
        if path in directories:
            return True
        path = path.rpartition("/")[0] or "/"
    return False
