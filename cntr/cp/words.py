"""Parsing SRC and DST: a target and a path in it, a path, or one of the caller's open files."""

from __future__ import annotations

import fcntl
import os

from cntr import engines
from cntr.errors import CntrError, UsageError, printable

STREAMS = {b"/dev/stdin": 0, b"/dev/stdout": 1, b"/dev/stderr": 2}
NAMES_HOLD_COLONS = ("unit", "command", "image", "archive", "oci", "dir")
FD_DIRECTORIES = (b"/dev/fd", b"/proc/self/fd", b"/proc/thread-self/fd")


def split(word: str) -> tuple[str, bytes]:
    """(TARGET, path from its root) of SRC or DST; no target: a path of the host. Raises UsageError.

    The first colon ends the target's name, behind an engine's prefix the next one. What ``unit:`` and the like take may hold colons
    itself: there it is the first ``:/``. A path of the host that holds a colon begins with ``./`` or ``/``.
    """
    if word == "-":
        raise UsageError(
            "cp: - is no file",
            "/dev/stdin and /dev/stdout are; a tar stream: `cntr attach TARGET -- tar -C /var/lib/cntr/DIR -c .`",
        )
    if not word or "\0" in word:
        raise UsageError("cp: an empty path", "`.` is this directory")
    head, colon, rest = word.partition(":")
    if not (head and colon) or word.startswith(("/", ".")):
        return "", os.fsencode(word)
    if head in NAMES_HOLD_COLONS:
        mark = ":/"
    elif head == "pid" or any(head in (entry.name, *entry.aliases) for entry in engines.entries()):
        mark = ":"
    else:
        mark = ""
    if mark and mark in rest:
        name, _, path = rest.partition(mark)
        target, path = f"{head}:{name}", mark[1:] + path
    elif mark and not rest.startswith("/"):  # with the slash it is a container that is called as the engine
        target, path = word, ""
    else:
        target, path = head, rest
    if not path:
        raise UsageError(f"cp: {printable(word)}: no path", f"{printable(target)}:/PATH, from the container's root")
    return target, os.fsencode(path if path.startswith("/") else f"/{path}")


def own_fd(path: bytes) -> int:
    """The fd that a path of the host names as the caller's own: /dev/stdin, /dev/fd/N and the like; -1 for every other path.

    Only by these very names: a link that leads there may be another's. Raises CntrError for one that the caller did not open.
    """
    normal = os.path.abspath(path)
    directory, _, last = normal.rpartition(b"/")
    if normal in STREAMS and os.path.islink(normal):
        number = STREAMS[normal]
    elif directory in (*FD_DIRECTORIES, b"/proc/%d/fd" % os.getpid()) and last.isdigit():
        number = int(last)
    else:
        return -1
    try:
        # What we opened ourselves is close-on-exec; what the caller handed down came through an exec.
        if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            return number
    except (OSError, OverflowError):
        pass
    raise CntrError(f"{printable(os.fsdecode(path))}: no open file of the caller", "a shell opens one: `7< FILE`")
