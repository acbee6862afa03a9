"""A whole tree as comparable records, and the differences between two such trees.

Inode numbers and current times differ by nature. What is compared: which names share an inode,
times that were set to an exact value, and which of the three times a step changed.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from . import syscalls

TICK_NS = 10_000_000  # the coarsest tick of the kernel's timestamps (HZ=100)

Times = tuple[int, int, int]


@dataclass(frozen=True)
class Record:
    """One name: what must be equal, and what is compared by rule (ino, times in ns)."""

    fields: dict[str, object]
    ino: int
    times: Times


Snapshot = dict[str, Record]


def take(top: str) -> Snapshot:
    """Each name below TOP, and TOP itself (as ""), read as root and without updating atime where possible."""
    records: Snapshot = {"": _record(top, "d")}
    pending = [""]
    while pending:
        directory = pending.pop()
        for entry in syscalls.read_directory(os.path.join(top, directory)):
            name = os.fsdecode(entry.name)
            if name in (".", ".."):
                continue
            relative = os.path.join(directory, name) if directory else name
            kind = {4: "d", 8: "f", 10: "l"}.get(entry.type, str(entry.type))
            records[relative] = _record(os.path.join(top, relative), kind)
            if kind == "d":
                pending.append(relative)
    return records


def _record(path: str, kind: str) -> Record:
    found = os.lstat(path)
    fields: dict[str, object] = {
        "d_type": kind,
        "mode": f"{stat.filemode(found.st_mode)} {found.st_mode:o}",
        "uid": found.st_uid,
        "gid": found.st_gid,
        "nlink": found.st_nlink,
        "size": found.st_size,
        "blocks": found.st_blocks,
        "rdev": found.st_rdev,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)},
    }
    if stat.S_ISLNK(found.st_mode):
        fields["text"] = os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        fields["data"] = _data(path)
    return Record(fields, found.st_ino, (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns))


def _xattrs(path: str) -> list[str]:
    try:
        return sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        return [f"errno {error.errno}"] if error.errno not in (95, 1) else []


def _data(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        data = b""
        while chunk := os.pread(fd, 1 << 20, len(data)):
            data += chunk
        return data
    finally:
        os.close(fd)


def differences(
    native: Snapshot, mounted: Snapshot, before: tuple[Snapshot, Snapshot] | None, since_ns: int
) -> list[tuple[str, str, object, object]]:
    """(path, field, native value, mounted value) of each difference; BEFORE holds the two trees before the step."""
    found: list[tuple[str, str, object, object]] = [
        (path, "exists", path in native, path in mounted) for path in sorted(native.keys() ^ mounted.keys())
    ]
    both, now_ns = sorted(native.keys() & mounted.keys()), time.time_ns()
    groups = [_groups(native), _groups(mounted)]
    previous = [{record.ino: record.times for record in tree.values()} for tree in before or ({}, {})]
    for path in both:
        one, two = native[path], mounted[path]
        for field in one.fields.keys() | two.fields.keys():
            if one.fields.get(field) != two.fields.get(field):
                found.append((path, field, one.fields.get(field), two.fields.get(field)))
        if groups[0][one.ino] != groups[1][two.ino]:
            found.append((path, "names of the inode", groups[0][one.ino], groups[1][two.ino]))
        for index, name in enumerate(("atime", "mtime", "ctime")):
            shown = [_shown(record.times[index], since_ns) for record in (one, two)]
            if shown[0] != shown[1]:
                found.append((path, name, *shown))
            elif name != "atime" and one.ino in previous[0] and two.ino in previous[1]:
                # (the clock of atime is coarse: of two reads, the second changes it only in another
                # tick)
                old = [times[record.ino][index] for record, times in zip((one, two), previous)]
                moved = [record.times[index] != time for record, time in zip((one, two), old)]
                # so is that of utimensat(2)'s "now": a time set in the same tick does not change
                if moved[0] != moved[1] and max(old) < now_ns - TICK_NS:
                    found.append((path, f"{name} moved", *moved))
    return found


def _groups(tree: Snapshot) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for path in sorted(tree):
        groups.setdefault(tree[path].ino, []).append(path)
    return groups


def _shown(value: int, since_ns: int) -> object:
    """ "now" for a time set by the clock during the run, others as they are."""
    return "now" if since_ns - 10**9 <= value <= time.time_ns() + 10**9 else value
