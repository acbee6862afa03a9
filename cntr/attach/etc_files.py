"""The /etc files of a session: written by cntr with safe ids and names, or bounded copies of the container's.

The container controls its passwd, and tools trust it: a prompt runs a name that contains ``$(…)``, start-up files
are read from the home, su runs the shell. So the session's passwd has the container's ids with safe names, and the
tools' own homes and shells. The tools' own service users are added where neither name nor id collides.
"""

from __future__ import annotations

from cntr.attach.target import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ENTRIES = 4096
LIMIT = 1 << 18  # bytes read of one file
SAFE_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
SAFE = SAFE_FIRST | frozenset("0123456789-.")
NAME_LENGTH = 32
COPIED = ("hosts", "hostname", "resolv.conf", "localtime")
LAST_ID = 0xFFFFFFFE


def safe_name(name: str) -> bool:
    """Whether NAME is a safe name for a user or group of a session."""
    return 0 < len(name) <= NAME_LENGTH and name[0] in SAFE_FIRST and set(name) <= SAFE and name not in (".", "..")


def number(text: str) -> int:
    """Parse an id; -1 if TEXT is not one."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 11 and int(text) < LAST_ID else -1


def rows(text: str, fields: int, id_field: int) -> list[tuple[list[str], int]]:
    """Parse a passwd(5) or group(5) text: [(fields, id)], at most ENTRIES. Lines without an id are skipped."""
    found = []
    for line in text[:LIMIT].split("\n")[:ENTRIES]:
        words = [*line.strip().split(":"), *[""] * fields][:fields]  # as for engines, the last ones may be missing
        if (value := number(words[id_field])) >= 0:
            found.append((words, value))
    return found


class Names:
    """The names and ids used in one file. The first entry to use a name or an id keeps it."""

    __slots__ = ("ids", "names")

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.names: set[str] = set()

    def take(self, name: str, value: int) -> bool:
        """Reserve NAME and VALUE; False if either is taken. Only id 0 may be named ``root``."""
        if value in self.ids or name in self.names or (name == "root" and value != 0):
            return False
        self.ids.add(value)
        self.names.add(name)
        return True


def passwd(theirs: str, tools: str, user: tuple[int, int, str, str, str]) -> str:
    """The session's passwd. theirs, tools: the two passwd texts; user: (uid, gid, name, home, shell) of the
    session.
    """
    uid, gid, own_name, own_home, shell = user
    names, lines = Names(), []
    known = {words[0]: (words[5], words[6]) for words, _ in rows(tools, 7, 2)}

    def add(name: str, value: int, group: int, home: str, program: str) -> None:
        if names.take(name, value):
            lines.append(f"{name}:x:{value}:{group}::{home}:{program}\n")

    add(own_name, uid, gid, own_home, shell)
    add("root", 0, 0, own_home if uid == 0 else "/root", shell)
    for words, value in rows(theirs, 7, 2):
        name = words[0] if safe_name(words[0]) and words[0] not in names.names | {"root"} else f"uid{value}"
        add(name, value, max(number(words[3]), 0), *known.get(name, ("/", "/bin/sh")))
    for words, value in rows(tools, 7, 2):
        if safe_name(words[0]):
            add(words[0], value, max(number(words[3]), 0), words[5], words[6])
    return "".join(lines)


def group(theirs: str, tools: str) -> str:
    """The session's group file. It lists no members: the container must not grant rights on the tools' tree."""
    names, lines = Names(), []
    for text, keep in ((theirs, True), (tools, False)):
        for words, value in rows(text, 4, 2):
            name = words[0] if safe_name(words[0]) else f"gid{value}"
            if (keep or name == words[0]) and names.take(name, value):
                lines.append(f"{name}:x:{value}:\n")
    if names.take("root", 0):
        lines.insert(0, "root:x:0:\n")
    return "".join(lines)


def copied(name: str, data: bytes) -> bytes:
    """A copy of one of COPIED that is safe for a session; b"" if the data does not fit the file's format."""
    if name == "localtime":
        return data if data.startswith(b"TZif") and len(data) < LIMIT else b""
    if name == "hostname":
        word = data.split(b"\n")[0].strip()[:64].decode("ascii", "replace")
        return word.encode() + b"\n" if word and set(word) <= SAFE else b""
    # Drop what a terminal would obey: users print these files with cat.
    kept = bytes(byte for byte in data[:LIMIT] if (byte >= 0x20 and byte != 0x7F) or byte in b"\t\n")
    return kept.decode("ascii", "ignore").encode()


def written(
    target: Target, tools_file: Callable[[str], str], user: tuple[int, int, str, str, str]
) -> list[tuple[str, bytes]]:
    """[(name, content)] of the session's /etc files. Where the container lacks a file, the tools' own stays."""
    theirs = {name: target.read_file(f"/etc/{name}", LIMIT) for name in ("passwd", "group")}
    found = [
        ("passwd", passwd(theirs["passwd"], tools_file("/etc/passwd"), user).encode("ascii", "replace")),
        ("group", group(theirs["group"], tools_file("/etc/group")).encode("ascii", "replace")),
    ]
    for name in COPIED:
        data = copied(name, target.read_bytes(f"/etc/{name}", LIMIT))
        if data:
            found.append((name, data))
    return found
