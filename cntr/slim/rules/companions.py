"""A server's own small tools, which people run with `docker exec` (redis-cli, haproxy's halog, keytool)."""

from __future__ import annotations

from cntr.slim.rules import packages, scripts
from cntr.slim.runs import as_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found

NAME = "companions"
SUMMARY = "the small programs of the started program's package, and those with its name or its name's first word before a - or _"
LARGEST, MOST = 3 << 19, 3 << 20  # bytes of one tool, of all together; larger ones need the exercise or --keep
_LETTERS = 4  # letters of a name's first word; shorter words mean nothing
PLACES = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin")


def seeds(context: Context) -> Found:
    """The tools of the programs in Entrypoint and Cmd."""
    settings = context.settings
    for words in (as_words(settings.get("Entrypoint")), as_words(settings.get("Cmd"))):
        program = context.program(words[0]) if words else ""
        real, _ = context.tree.resolve(program) if program else ("", [])
        if not real or real.rpartition("/")[0] not in PLACES:
            continue
        found = {*_of_package(context, real), *_of_name(context, real)} - {real}
        found = {path for path in found if _runs_anyway(context, path)}
        size = 0
        for path in sorted(found, key=lambda path: context.tree.entries[path].size):
            size += context.tree.entries[path].size
            if context.tree.entries[path].size <= LARGEST and size <= MOST:
                yield path, f"a tool of {real}, which the image starts"


def _runs_anyway(context: Context, path: str) -> bool:
    """Whether a tool needs no language that the application does not use: Perl for a2enmod would be 5 MB."""
    head = context.tree.read(path, 256)
    if not head.startswith(b"#!"):
        return True
    words = scripts.interpreter(head.partition(b"\n")[0].decode("utf-8", "replace"))
    names = [word for word in words if not word.startswith("-")]
    name = names[1] if len(names) > 1 and names[0].endswith("/env") else "".join(names[:1])
    if name.rpartition("/")[2] in scripts.SHELLS:
        return True
    real, _ = context.tree.resolve(context.program(name))
    return any("exec" in context.accesses.kinds.get(one, ()) for one in context.tree.siblings(real)) if real else False


def _of_package(context: Context, program: str) -> list[str]:
    owners = packages.owners(context)
    name = owners.get(program)
    if not name or name in ("coreutils", "busybox", "bash", "dash"):
        return []
    return [path for path in _programs(context) if owners.get(path) == name and path != program]


def _of_name(context: Context, program: str) -> list[str]:
    """Tools with the program's name; they may be in another package (mosquitto_sub), or in none."""
    name = program.rpartition("/")[2]
    word = name if program in packages.owners(context) else name.partition("-")[0]
    if len(word) < _LETTERS:
        return []
    return [path for path in _programs(context) if path.rpartition("/")[2].startswith((f"{word}-", f"{word}_"))]


def _programs(context: Context) -> list[str]:
    tree = context.tree
    return [path for place in PLACES for path in tree.children(place) if tree.entries[path].is_executable]
