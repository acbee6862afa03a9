"""Parsers of the kernel's /proc text (proc(5)). Only ``read`` and ``living`` touch files."""

from __future__ import annotations

import os
import time

LIMIT = 4 << 20  # most bytes read of one /proc file: enough for thousands of mounts


def read(path: str, dir_fd: int | None = None, limit: int = LIMIT, seconds: float = 0) -> str:
    """The text of a /proc file, at most LIMIT bytes; undecodable bytes become surrogates. Raises OSError; TimeoutError
    if it takes longer than SECONDS.
    """
    deadline = time.monotonic() + seconds if seconds else 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        chunks = []
        while limit > 0 and (chunk := os.read(fd, min(limit, 1 << 16))):
            chunks.append(chunk)
            limit -= len(chunk)
            if deadline and time.monotonic() > deadline:
                raise TimeoutError
        return os.fsdecode(b"".join(chunks))
    finally:
        os.close(fd)


def living(pid: int) -> str:
    """The directory of PID in /proc. If its first thread has ended and others live, that of a living thread: a zombie
    shows little of itself.
    """
    path = f"/proc/{pid}"
    if not _is_zombie(path):
        return path
    return next((thread for thread in _threads(path) if not _is_zombie(thread)), path)


def _threads(path: str) -> list[str]:
    try:
        return [f"{path}/task/{thread}" for thread in os.listdir(f"{path}/task")]
    except OSError:
        return []


def _is_zombie(path: str) -> bool:
    try:
        return read(f"{path}/stat").rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def status(text: str) -> dict[str, str]:
    """/proc/PID/status as {field: value}, the values stripped."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines()) if key}


def start_time(stat: str) -> int:
    """Field 22 of /proc/PID/stat: the start time in clock ticks since boot. The name in field 2 may contain anything."""
    return int(stat.rpartition(")")[2].split()[19])


def parent_pid(stat: str) -> int:
    """Field 4 of /proc/PID/stat."""
    return int(stat.rpartition(")")[2].split()[1])


class Mount:
    """One line of /proc/PID/mountinfo: ids, device, root within its filesystem, mount point, options, type, source."""

    __slots__ = (
        "device",
        "fstype",
        "mount_id",
        "mount_point",
        "options",
        "parent_id",
        "propagation",
        "root",
        "source",
        "super",
    )

    def __init__(self, line: str) -> None:
        """Parse one line. Raises ValueError or IndexError if it is malformed."""
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        self.mount_id, self.parent_id = int(fields[0]), int(fields[1])
        major, _, minor = fields[2].partition(":")
        self.device = os.makedev(int(major), int(minor))
        self.root, self.mount_point = unescape(fields[3]), unescape(fields[4])
        self.options = fields[5].split(",")
        self.propagation = fields[6:]
        kind = right.split(" ")
        self.fstype, self.source = kind[0], unescape(kind[1])
        self.super = kind[2].split(",") if len(kind) > 2 else []


def has_all_ids() -> bool:
    """Whether this process is root over all ids, not an ordinary user or root of a user namespace that maps a few."""
    return not os.geteuid() and read("/proc/self/uid_map").split() == ["0", "0", "4294967295"]


def mountinfo(text: str) -> list[Mount]:
    """All mounts of /proc/PID/mountinfo, in the kernel's order. An incomplete last line (LIMIT) is dropped."""
    return [Mount(line) for line in text.split("\n")[:-1] if line]


def unescape(text: str) -> str:
    r"""Undo the kernel's octal escapes (\040 \011 \012 \134) in mountinfo."""
    if "\\" not in text:
        return text
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def is_frozen(text: str) -> bool:
    """Whether a cgroup is frozen. text: of its freezer.state (version 1) or cgroup.events (version 2), cgroups(7)."""
    return any(line in ("FROZEN", "FREEZING", "frozen 1") for line in text.split("\n"))


def id_map(text: str) -> tuple[tuple[int, int, int], ...]:
    """/proc/PID/uid_map or gid_map as (first id inside, first id outside, count) rows."""
    return tuple((int(a), int(b), int(c)) for a, b, c in (line.split() for line in text.splitlines()))


def map_id(inside: int, rows: tuple[tuple[int, int, int], ...]) -> int | None:
    """The outside id of INSIDE under an id map, None if it is not mapped."""
    for first, outside, count in rows:
        if first <= inside < first + count:
            return outside + inside - first
    return None


def cgroups(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as {controllers: path}; cgroup2 has the key "" (cgroups(7))."""
    return {
        controllers: path
        for _, controllers, path in (line.split(":", 2) for line in text.split("\n") if line.count(":") >= 2)
    }


def environ(text: str) -> dict[str, str]:
    """/proc/PID/environ as {name: value}. Entries without '=' are dropped, as a process may overwrite its own; the
    first of a name wins.
    """
    result: dict[str, str] = {}
    for entry in text.split("\0"):
        key, equals, value = entry.partition("=")
        if key and equals:
            result.setdefault(key, value)
    return result


def environ_is_overwritten(text: str) -> bool:
    """Whether a process has overwritten its environment, e.g. with a title: some entry has no name, or an invalid one."""
    for entry in text.split("\0"):
        name, equals, _ = entry.partition("=")
        if entry and (not equals or not name or any(c in " :/[]\t\n" for c in name)):
            return True
    return False


def limits(text: str) -> list[tuple[int, int]]:
    """/proc/PID/limits as [(soft, hard)], indexed by resource number (getrlimit(2)); unlimited is -1, RLIM_INFINITY.

    Not by prlimit(2), which needs CAP_SYS_RESOURCE for a process of another user.
    """
    rows = (line[26:].split() for line in text.splitlines()[1:])
    return [tuple(-1 if word == "unlimited" else int(word) for word in row[:2]) for row in rows]  # type: ignore[misc]


def passwd_entry(text: str, user: str) -> tuple[str, int, int, str, str] | None:
    """(name, uid, gid, home, shell) of USER in the text of a passwd(5) file. USER is a uid if it is a number, else a
    name.

    A number is never taken for a name: an image may name a user of uid 0 "1000" (CVE-2016-3697). As for engines, fields
    may be missing at the end, which are empty, and the gid 0.
    """
    number = (user.lstrip("0") or "0") if user.isascii() and user.isdecimal() else ""
    for line in text.split("\n"):
        name, _, uid, gid, _, home, shell = _fields(line, 7)
        if _is_id(uid) and _is_id(gid or "0") and ((uid.lstrip("0") or "0") == number if number else user == name):
            return name, int(uid), int(gid or 0), home, shell
    return None


def _fields(line: str, count: int) -> list[str]:
    return [*line.strip().split(":"), *[""] * count][:count]


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10


def groups_of(text: str, user: str) -> list[int]:
    """The supplementary group ids of USER in the text of a group(5) file."""
    rows = (_fields(line, 4) for line in text.split("\n"))
    return [int(row[2]) for row in rows if _is_id(row[2]) and user in row[3].split(",")]


def group_id(text: str, group: str) -> int | None:
    """The id of the group named GROUP in the text of a group(5) file."""
    for line in text.split("\n"):
        name, _, gid, _ = _fields(line, 4)
        if name == group and _is_id(gid):
            return int(gid)
    return None
