"""What the image's configuration names: Entrypoint, Cmd, Healthcheck, Shell, the content of Volumes, the working
directory.
"""

from __future__ import annotations

from cntr.slim.runs import as_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "configuration"
SUMMARY = "Entrypoint, Cmd, Healthcheck, Shell, what is in Volumes, files among their arguments; a used directory of /etc whole"
SMALL = 256 << 10  # bytes of a directory in /etc that is kept as a whole
BESIDE = "in a directory of /etc of which a file is used"
SHELL_TOOLS = "sh bash ls cat cp mv rm mkdir rmdir ln chmod chown ps id env grep sed head tail sleep true false echo pwd date find which"


def seeds(context: Context) -> Found:
    """Programs, and files among their arguments."""
    settings = context.settings
    health = as_words((settings.get("Healthcheck") or {}).get("Test"))
    commands = {
        "Entrypoint": as_words(settings.get("Entrypoint")),
        "Cmd": as_words(settings.get("Cmd")),
        "Healthcheck": health[1:] if health[:1] == ["CMD"] else [],
        "Shell": as_words(settings.get("Shell")),
    }
    if health[:1] == ["CMD-SHELL"]:
        commands["Healthcheck"] = ["/bin/sh", *(word for text in health[1:] for word in text.split())]
    for what, words in commands.items():
        for number, word in enumerate(words):
            if number == 0 or what == "Healthcheck" or (what == "Cmd" and not commands["Entrypoint"] and number == 0):
                yield context.program(word), f"the image's {what}"
            if word.startswith("/") or number:
                yield _file(context, word), f"an argument of the image's {what}"
    for volume in settings.get("Volumes") or {}:
        real, _ = context.tree.resolve(str(volume))
        if real:
            yield real, "a volume of the image"
            if real != "/":
                for path in context.tree.below(real):
                    yield path, f"the content of the volume {volume}"
    yield str(settings.get("WorkingDir") or "/"), "the working directory"
    if context.choices.keep_shell:
        for name in SHELL_TOOLS.split():
            yield context.program(name), "--keep-shell"
        yield context.program("busybox"), "--keep-shell"


def follows(context: Context, path: str, entry: Entry) -> Found:
    """The other files in /etc/NAME: a request or a login decides later which templates, sites or services are read."""
    directory = path.rpartition("/")[0]
    seen: set[str] = context.once("directories of /etc", set)
    used = context.accesses.kinds.get(path, {"name"}) != {"name"} or path in context.missed
    if not used or not entry.is_file or not directory.startswith("/etc/") or directory in seen:
        return
    seen.add(directory)
    beside = [one for one in context.tree.children(directory) if context.tree.entries[one].is_file and one != path]
    if sum(context.tree.entries[one].size for one in beside) <= SMALL:
        for one in beside:
            yield one, BESIDE


def _file(context: Context, word: str) -> str:
    path = word if word.startswith("/") else f"{context.settings.get('WorkingDir') or '/'}/{word}"
    real, _ = context.tree.resolve(path)
    return path if real and not context.tree.entries[real].is_directory else ""
