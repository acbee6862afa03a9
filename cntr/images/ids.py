"""The id maps of rootless containers, in the host's ids: 0 is the user, what follows is the range of subuid(5) and subgid(5)."""

from __future__ import annotations

from cntr.engines import store
from cntr.linux import procfs

Rows = list[tuple[int, int, int]]


def of_rootless(rows: Rows, file: str, owner: int) -> Rows:
    """ROWS, a map into the engine's own user namespace, as one into the host's; [] means one to one. file: /etc/subuid or /etc/subgid."""
    outer = [(0, owner, 1)]
    try:
        names = {_name(owner), str(owner)}
        for line in store.read(file).splitlines():
            row = line.split(":")
            if len(row) == 3 and row[0] in names and row[1].isdecimal() and row[2].isdecimal():
                outer.append((outer[-1][0] + outer[-1][2], int(row[1]), int(row[2])))
    except OSError:
        pass  # no subordinate ids: the user alone
    if not rows:
        return outer
    found = []
    for inside, middle, count in rows:
        for first, outside, length in outer:
            start, end = max(middle, first), min(middle + count, first + length)
            if start < end:
                found.append((inside + start - middle, outside + start - first, end - start))
    return found


def _name(uid: int) -> str:
    try:
        entry = procfs.passwd_entry(store.read("/etc/passwd"), str(uid))
    except OSError:
        return ""
    return entry[0] if entry else ""
