"""Parses SRC and DST: a target with a path, a path, or one of the caller's open files."""

from __future__ import annotations

import fcntl
import os

from cntr.engines import plugins
from cntr.errors import CntrError, UsageError, printable

STREAMS = {b"/dev/stdin": 0, b"/dev/stdout": 1, b"/dev/stderr": 2}
NAMES_HOLD_COLONS = ("unit", "command", "image", "archive", "oci", "dir")
FD_DIRECTORIES = (b"/dev/fd", b"/proc/self/fd", b"/proc/thread-self/fd")


def split(word: str) -> tuple[str, bytes]:
    """(TARGET, path from its root) of SRC or DST; without a target: a path of the host. Raises UsageError.

    The first colon ends the target's name; after an engine's prefix, the second one. The argument of ``unit:`` and the
    like may contain colons: there the first ``:/`` counts. A path of the host that contains a colon starts with ``./``
    or ``/``.
    """
    if word == "-":
        raise UsageError(
            "cp: - is no file",
            "/dev/stdin and /dev/stdout are; a tar stream: `cntr attach TARGET -- tar -C /var/lib/cntr/DIR -c .`, or -x",
        )
    if not word or "\0" in word:
        raise UsageError("cp: an empty path", "`.` is this directory")
    head, colon, rest = word.partition(":")
    if not (head and colon) or word.startswith(("/", ".")):
        return "", os.fsencode(word)
    if head in NAMES_HOLD_COLONS:
        mark = ":/"
    elif head == "pid" or any(head in (entry.name, *entry.aliases) for entry in plugins.entries()):
        mark = ":"
    else:
        mark = ""
    if mark and mark in rest:
        name, _, path = rest.partition(mark)
        target, path = f"{head}:{name}", mark[1:] + path
    elif mark and not rest.startswith("/"):  # with a slash, the engine's name is the name of a container
        target, path = word, ""
    else:
        target, path = head, rest
    if not path:
        raise UsageError(f"cp: {printable(word)}: no path", f"{printable(target)}:/PATH, from the container's root")
    return target, os.fsencode(path if path.startswith("/") else f"/{path}")


class Sides:
    """SRC and DST of the command line. outward: from the container to the host."""

    def __init__(self, source: str, destination: str, *, far: str = "") -> None:
        """far: the word for another machine's side. Raises UsageError."""
        parts = [("", b"") if far and word == far else split(word) for word in (source, destination)]
        (source_target, source_path), (target, path) = parts
        if source_target and target:
            raise UsageError(
                "cp: both sides are in a container",
                "copy to a directory of the host first; a name with a colon in it is the host's as ./NAME",
            )
        if not (source_target or target):
            raise UsageError(
                "cp: neither side is in a container", "the container's side is TARGET:/PATH, from its root"
            )
        self.target, self.outward = source_target or target, bool(source_target)
        self.container_path, self.host_path = (source_path, path) if self.outward else (path, source_path)


def own_fd(path: bytes) -> int:
    """The fd that a path of the host names: /dev/stdin, /dev/fd/N and the like; -1 for every other path.

    Only these names count: a link that leads there may be someone else's. Raises CntrError for an fd that the caller
    did not open.
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
        # Fds that cntr opened are close-on-exec; those of the caller came through an exec.
        if not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            return number
    except (OSError, OverflowError):
        pass
    raise CntrError(f"{printable(os.fsdecode(path))}: no open file of the caller", "a shell opens one: `7< FILE`")
