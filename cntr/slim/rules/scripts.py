"""Scripts: the interpreter in the first line; the programs that a start script names in any branch,
and in the scripts that it sources or starts. A command line in the configuration that is passed to
a shell counts as such a script, too.
"""

from __future__ import annotations

import re
import shlex

from cntr.slim.rules import configuration
from cntr.slim.runs import as_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "scripts"
SUMMARY = "the interpreter of #!, `env X`, what executed shell scripts, and those that they source or start, name in any branch"
SHELLS = ("sh", "bash", "dash", "ash", "ksh", "zsh")
_MOST = 1 << 18  # bytes of a script
_LONGEST = 200  # characters of a variable's value
# A program follows these words; after those of the second line, possibly some words later.
_BEFORE = frozenset("then do else elif if while until exec command nohup env time ! && || ; | ( { $( `".split())
_RUNNERS = frozenset("gosu su-exec setpriv chpst sudo runuser xargs tini dumb-init nice ionice timeout chroot".split())
_TOKEN = re.compile(r"""\$\(|&&|\|\||[;|&(){}`\n]|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s;|&(){}`"']+""")
_WORD = re.compile(r"[A-Za-z0-9_.+-][A-Za-z0-9_.+:-]*|/[A-Za-z0-9_.+:@/-]+")
# Ways in which a script refers to its own directory.
_SELF = r"\$(?:0|\{0\}|BASH_SOURCE|\{BASH_SOURCE(?:\[0\])?\})"
_OWN_DIRECTORY = re.compile(
    rf"""\$\(\s*dirname\s+(?:--\s+)?"?{_SELF}"?\s*\)|`\s*dirname\s+"?{_SELF}"?\s*`|\$\{{(?:0|BASH_SOURCE(?:\[0\])?)%/\*\}}"""
)
_CHANGED_TO = re.compile(r"""\$\(\s*cd\s+(?:-P\s+|--\s+)*"?(/[^"$()\s]*)"?\s*(?:&&|;)\s*pwd(?:\s+-P)?\s*\)""")
_ASSIGNED = re.compile(
    r"""^\s*(?:export\s+|readonly\s+|local\s+|:\s+"?\$\{)?([A-Za-z_]\w*)(?:=|:?=)["']?([^\s"'`;|&(){}]{1,200})["']?""",
    re.MULTILINE,
)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?[-=]([^{}$]{0,200}))?\})")
# A script that is passed to a shell need not begin with #!.
_GIVEN = re.compile(
    r"(?:^|[\s;&|(/])(?:sh|bash|dash|ash|ksh|zsh)[ \t]+(?:-[a-z]+[ \t]+)*[\"']?(/[\w./+@-]+)", re.MULTILINE
)
_SOURCED = re.compile(
    r"""(?:^|[;&|{]|\b(?:then|do|else))[ \t]*(?:\.|source)[ \t]+["']?([^\s"';&|]{1,300})""", re.MULTILINE
)


def interpreter(line: str) -> list[str]:
    """The words after #! in the first line."""
    words = line.removeprefix("#!").strip().split(None, 1)
    if len(words) == 2:
        try:
            return [words[0], *shlex.split(words[1])]
        except ValueError:
            return words
    return words


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a file that begins with #!."""
    if not entry.is_file or not entry.size:
        return
    head = context.tree.read(path, 256)
    if not head.startswith(b"#!"):
        return
    words = interpreter(head.partition(b"\n")[0].decode("utf-8", "replace"))
    if not words:
        return
    yield words[0], "the interpreter of a script"
    rest = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    program = words[0].rpartition("/")[2]
    if program == "env" and rest:
        program = rest[0].rpartition("/")[2]
        yield context.program(rest[0]), f"what `env {rest[0]}` of a script finds"
    if program in SHELLS and entry.size <= _MOST and is_started(context, path):
        yield from of_script(context, path)


def seeds(context: Context) -> Found:
    """Rules for what the configuration passes to a shell: `sh -c TEXT`, a health check."""
    settings = context.settings
    health = as_words((settings.get("Healthcheck") or {}).get("Test"))
    texts = [" ".join(health[1:])] if health[:1] == ["CMD-SHELL"] else []
    for words in (as_words(settings.get("Entrypoint")) + as_words(settings.get("Cmd")), health[1:]):
        for number, word in enumerate(words[:-2]):
            if word.rpartition("/")[2] in SHELLS and re.fullmatch(r"-[a-z]*c", words[number + 1]):
                texts.append(words[number + 2])
    directory = str(settings.get("WorkingDir") or "/")
    words = as_words(settings.get("Entrypoint")) + as_words(settings.get("Cmd"))
    for shell, script in zip(words, words[1:]):
        if shell.rpartition("/")[2] in SHELLS and not script.startswith("-"):
            texts.append(f". {script if script.startswith('/') else f'{directory}/{script}'}")
    for text in texts:
        yield from of_text(context, text, f"{directory}/x", "named by a command line of the image's configuration")


def of_script(context: Context, path: str, why: str = "named by a start script") -> Found:
    """What a shell script names, and what the scripts that it sources or starts name."""
    done: set[str] = context.once("shell scripts", set)
    if path not in done:
        done.add(path)
        text = context.tree.read(path, _MOST).decode("utf-8", "replace")
        yield from of_text(context, text, path, why)


def of_text(context: Context, text: str, path: str, why: str) -> Found:
    """path: the script's own, for names relative to its directory."""
    done: set[str] = context.once("shell scripts", set)
    waiting = [(text, path)]
    while waiting:
        text, path = waiting.pop()
        text = expanded(text, path.rpartition("/")[0], context.environment())
        found = [*named(text), *files(text)]
        sourced = [one for word in _SOURCED.findall(text) for one in _places(context, word, path)] + _GIVEN.findall(
            text
        )
        for name in [*found, *sourced]:
            place = context.program(name) if name not in sourced and "/" not in name else name
            real, _ = context.tree.resolve(place) if place else ("", [])
            entry = context.tree.entries[real] if real else None
            if entry is None or not entry.is_file:
                continue
            yield place, why
            if real not in done and (name in sourced or _is_shell(context, real, entry)) and entry.size <= _MOST:
                done.add(real)
                waiting.append((context.tree.read(real, _MOST).decode("utf-8", "replace"), real))


def _is_shell(context: Context, path: str, entry: Entry) -> bool:
    """Whether a file is a shell script, judged by its first line."""
    if not entry.is_executable:
        return False
    head = context.tree.read(path, 256)
    words = interpreter(head.partition(b"\n")[0].decode("utf-8", "replace")) if head.startswith(b"#!") else []
    names = [word.rpartition("/")[2] for word in words if not word.startswith("-")]
    return bool(names) and (names[1] if names[0] == "env" and len(names) > 1 else names[0]) in SHELLS


def _places(context: Context, word: str, path: str) -> list[str]:
    """Where a sourced script may be: WORD is a path, or a name to search for in PATH."""
    if word.startswith("/"):
        return [word]
    if "$" in word:
        word = re.sub(r".*(?:\$\{[^}]*\}|\$\w+|\))", "", word)
    name = word.lstrip("/")
    directories = [path.rpartition("/")[0], str(context.settings.get("WorkingDir") or "/"), *context.search_path()]
    return [f"{directory}/{name}" for directory in directories] if name else []


def expanded(text: str, directory: str, environment: dict[str, str]) -> str:
    """A script with variables replaced: those that it sets to plain words, the container's, and its own DIRECTORY."""
    known = {name: value for name, value in environment.items() if len(value) <= _LONGEST}

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return known.get(name) or found[3] or found[0]

    lines = []
    for line in text.split("\n"):
        line = _OWN_DIRECTORY.sub(lambda _: directory, line)
        line = _CHANGED_TO.sub(lambda found: found[1], _VARIABLE.sub(value, line))
        assigned = _ASSIGNED.match(line)
        if assigned and len(assigned[2]) <= _LONGEST:
            known[assigned[1]] = assigned[2]
        lines.append(line)
    return "\n".join(lines)


def language(context: Context, path: str, entry: Entry) -> str:
    """The interpreter of an executed script, without its version (python, perl, ruby); "" for anything else."""
    if not entry.is_executable or entry.size > _MOST or not is_started(context, path):
        return ""
    head = context.tree.read(path, 256)
    if not head.startswith(b"#!"):
        return ""
    words = interpreter(head.partition(b"\n")[0].decode("utf-8", "replace"))
    names = [word.rpartition("/")[2] for word in words if not word.startswith("-")]
    name = names[1] if names[:1] == ["env"] and len(names) > 1 else "".join(names[:1])
    return name.rstrip("0123456789.")


def is_started(context: Context, path: str) -> bool:
    """Whether the script runs at the container's start: executed in the recording, named by the configuration, a tool
    of the started program, or the application's own.
    """
    if "exec" in context.accesses.kinds.get(path, ()):
        return True
    reason = context.kept.get(path)
    return path in context.application or (
        reason is not None and reason.rule in ("configuration", "companions") and reason.why != configuration.BESIDE
    )


def named(text: str) -> list[str]:
    """The words of a shell script in command position."""
    found: dict[str, None] = {}
    expected, runner = True, 0
    for line in _logical(text):
        expected, runner = True, 0
        for token in _TOKEN.findall(line):
            if token in _BEFORE or token in ("\n", "&", "}", ")"):
                expected, runner = True, 0
                continue
            if "=" in token and expected and not token.startswith(("-", "/")):
                for inner in re.findall(r"\$\(\s*([A-Za-z0-9_./+-]+)", token):
                    found[inner] = None
                continue
            if token[0] in "\"'":
                for inner in re.findall(r"(?:\$\(|`)\s*([A-Za-z0-9_./+-]+)", token):
                    found[inner] = None
                token = token[1:-1]
            if _WORD.fullmatch(token) and (expected or runner):
                found[token] = None
                runner = 6 if token.rpartition("/")[2] in _RUNNERS else max(0, runner - 1)
            expected = False
    return list(found)


def files(text: str) -> list[str]:
    """The absolute paths in a script."""
    return list(
        dict.fromkeys(re.findall(r"(?<![\w$}/.-])/[A-Za-z0-9_.+@-]+(?:/[A-Za-z0-9_.+@-]+)+", "\n".join(_logical(text))))
    )


def _logical(text: str) -> list[str]:
    """Lines without comments, with continuations joined."""
    joined = text.replace("\\\n", " ")
    return [re.sub(r"(?:^|\s)#.*", "", line) for line in joined.split("\n")]
