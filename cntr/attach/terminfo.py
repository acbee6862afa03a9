"""The terminfo(5) entry of the caller's terminal, for tools that lack it. Without it vim, less or top would not
know the terminal.

Some terminals install their entry in ~/.terminfo or $TERMINFO, which a session does not see, and the tools of an
image know few.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEM = ("/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo")
LONGEST = 1 << 15  # bytes: the most that ncurses reads
MAGIC = (b"\x1a\x01", b"\x1e\x02")  # term(5)


def missing(read_tools_file: Callable[[str], str]) -> list[tuple[str, bytes]]:
    """[(path below the home, content)] to add for $TERM: empty if the tools know it, or if the caller does not."""
    name = os.environ.get("TERM", "")
    if not name or "/" in name or name.startswith(".") or len(name) > 64 or not name.isascii():
        return []
    if any(read_tools_file(f"{top}/{path}") for top in SYSTEM for path in _paths(name)):
        return []
    own = [os.environ.get("TERMINFO", ""), f"{os.environ.get('HOME', '')}/.terminfo"]
    for top in (*own, *os.environ.get("TERMINFO_DIRS", "").split(":"), *SYSTEM):
        if top.startswith("/"):
            for path in _paths(name):
                data = _read(f"{top}/{path}")
                if data.startswith(MAGIC):
                    return [(f".terminfo/{name[0]}/{name}", data)]
    return []


def _paths(name: str) -> tuple[str, str]:
    """Both paths under which ncurses looks for NAME."""
    return f"{name[0]}/{name}", f"{ord(name[0]):x}/{name}"


def _read(path: str) -> bytes:
    try:
        place = os.open(
            path, os.O_PATH | os.O_CLOEXEC
        )  # the home may be a user's, and to open some devices has effects
    except OSError:
        return b""
    fd = -1
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return b""
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return os.pread(fd, LONGEST, 0)
    except OSError:
        return b""
    finally:
        os.close(place)
        if fd >= 0:
            os.close(fd)
