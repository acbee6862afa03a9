"""Usual mistakes in an entrypoint: what a file is that is no program, what a word was meant to be, what a wrapper or a shell would run."""

from __future__ import annotations

import os

NO_PROGRAMS = (
    (b"MZ", "a program for Windows"),
    (b"\xcf\xfa\xed\xfe", "a program for macOS"),
    (b"\xca\xfe\xba\xbe", "Java's or macOS' code, not a program of Linux"),
    (b"\0asm", "WebAssembly, which needs a runtime"),
    (b"PK\x03\x04", "a zip archive (`java -jar`, `python3` run some)"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"!<arch>\n", "an archive: a library, or a Debian package"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file: `git lfs pull`"),
    (b"<!DOCTYPE", "a page of HTML: a download that has failed?"),
    (b"<html", "a page of HTML: a download that has failed?"),
    (b"\xff\xfe", "text in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16: save it as UTF-8"),
)
SHELLS = ("sh", "bash", "dash", "ash", "ksh", "zsh")
INTERPRETERS = (*SHELLS, "python", "python3", "node", "perl", "ruby", "php")
WRAPPERS = ("tini", "dumb-init", "catatonit", "env", "exec", "nohup", "setsid")
# What a shell has itself (POSIX, and what bash and busybox add); a word of these needs no file.
BUILTINS = frozenset(
    ". : [ [[ alias bg break case cd command continue echo eval exit export false fg for function getopts hash help history if jobs "
    "kill let local printf pwd read readonly return select set shift shopt source test then time times trap true type typeset "
    "ulimit umask unalias unset until wait while declare".split()
)
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-")


def kind_of(head: bytes) -> str:
    """What a file is that begins with HEAD and is neither ELF nor a script."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "nothing but zero bytes: a copy that was cut off?"
    if head.startswith(b"\xef\xbb\xbf#!"):
        return "a byte order mark before #!: save it as UTF-8 without one"
    for magic, what in NO_PROGRAMS:
        if head.startswith(magic):
            return f"{what} (exec format error)"
    if head.lstrip().startswith(b"#!"):
        return "an empty line or a space before #!, which has to come first (exec format error)"
    return "neither a program nor a script: no #! in its first line (exec format error)"


def of_word(word: str) -> str:
    """Why a program's name is none, "" where it could be one."""
    if word != word.strip():
        return ": it ends or begins with a space or a line end"
    if word.startswith("["):
        return ': a list that is no JSON is a shell\'s line: write ["a", "b"] with double quotes'
    if word[:1] in ("'", '"') and word[:1] == word[-1:]:
        return ": its quotes are a part of its name: in a list there is no shell"
    if "$" in word or word.startswith("~"):
        return ": in a list there is no shell that would replace $ or ~"
    if " " in word:
        return ": one word with spaces in it: a list has a word for each argument"
    return ""


def runs_next(argv: list[str]) -> list[str]:
    """What a wrapper (tini, env, …) or a shell's `-c` line runs in the end, [] where that can't be told from the words."""
    name = os.path.basename(argv[0])
    if name in SHELLS and len(argv) > 2 and argv[1] in ("-c", "-ec", "-lc", "-xc", "-exc"):
        return _of_line(argv[2])
    if name not in WRAPPERS:
        return []
    rest = argv[argv.index("--") + 1 :] if "--" in argv else argv[1:]
    while rest and "=" in rest[0] and name == "env":
        rest = rest[1:]
    return rest if rest and not rest[0].startswith("-") else []


def _of_line(line: str) -> list[str]:
    words = line.split()
    while words and ("=" in words[0] or words[0] == "exec"):
        if not PLAIN.issuperset(words[0].replace("=", "")):
            return []
        words = words[1:]
    if not words or not PLAIN.issuperset(words[0]) or words[0] in BUILTINS:
        return [line] if line.startswith("[") and line.endswith("]") and "'" in line else []
    return [word for word in words if PLAIN.issuperset(word)] if words[0] not in SHELLS else [words[0]]


def script_of(argv: list[str]) -> str:
    """The file that an interpreter is to read, "" where the words do not say."""
    name = os.path.basename(argv[0]).rstrip("0123456789.") or argv[0]
    if name not in INTERPRETERS or len(argv) < 2 or argv[1].startswith("-"):
        return ""
    return argv[1]
