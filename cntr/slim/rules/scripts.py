"""Scripts: the interpreter of the first line, and the programs that a start script names, in any branch."""

from __future__ import annotations

import re
import shlex

from cntr.slim.rules import configuration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "scripts"
SUMMARY = "the interpreter of #!, `env X`, programs and files that executed shell scripts name in any branch"
SHELLS = ("sh", "bash", "dash", "ash", "ksh", "zsh")
_MOST = 1 << 18  # bytes of a script
# A program follows these words; after those of the second line, possibly some words later.
_BEFORE = frozenset("then do else elif if while until exec command nohup env time ! && || ; | ( { $( `".split())
_RUNNERS = frozenset("gosu su-exec setpriv chpst sudo runuser xargs tini dumb-init nice ionice timeout chroot".split())
_TOKEN = re.compile(r"""\$\(|&&|\|\||[;|&(){}`\n]|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s;|&(){}`"']+""")
_WORD = re.compile(r"[A-Za-z0-9_.+-][A-Za-z0-9_.+:-]*|/[A-Za-z0-9_.+:@/-]+")


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
        text = context.tree.read(path, _MOST).decode("utf-8", "replace")
        for name in named(text):
            yield context.program(name), "named by a start script"
        for name in files(text):
            if _is_plain(context, name):
                yield name, "named by a start script"


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


def _is_plain(context: Context, path: str) -> bool:
    real, _ = context.tree.resolve(path)
    return bool(real) and context.tree.entries[real].is_file


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
