"""Id maps of rootless containers, in the host's ids: 0 is the user, followed by the ranges of subuid(5) and subgid(5)."""

from __future__ import annotations

import os

from cntr.engines import commands, store
from cntr.linux import procfs, syscalls

Rows = list[tuple[int, int, int]]


def of_rootless(rows: Rows, file: str, owner: int) -> Rows:
    """Convert ROWS, a map into the engine's user namespace, to one into the host's; [] means one to one. file:
    /etc/subuid or /etc/subgid.
    """
    outer = _of_user(file, owner)
    return _through(rows, outer) if rows else outer


def into_rootless(rows: Rows, file: str, owner: int) -> Rows:
    """Convert ROWS, a map into the host's ids, to one into the user's own user namespace; the inverse of
    ``of_rootless``.
    """
    return _through(rows, [(outside, inside, count) for inside, outside, count in _of_user(file, owner)])


def _of_user(file: str, owner: int) -> Rows:
    """What the user may map: 0 to the user, then the ranges in FILE."""
    outer = [(0, owner if file.endswith("subuid") else store.home_and_group(owner)[1], 1)]
    try:
        names = {_name(owner), str(owner)}
        for line in store.read(file).splitlines():
            row = line.split(":")
            if len(row) == 3 and row[0] in names and row[1].isdecimal() and row[2].isdecimal():
                outer.append((outer[-1][0] + outer[-1][2], int(row[1]), int(row[2])))
    except OSError:
        pass  # no subordinate ids: only the user
    return outer


def _through(rows: Rows, outer: Rows) -> Rows:
    """Compose two maps; ids that OUTER lacks are dropped."""
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


def enter_user_namespace(uid_map: Rows, gid_map: Rows) -> None:
    """unshare(CLONE_NEWUSER), and become its root. A child outside writes the maps, which needs the parent namespace's
    rights.

    An ordinary user's maps are written by newuidmap(1). Raises OSError.
    """
    reading, writing = os.pipe()
    own = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(writing)
            os.read(reading, 1)
            for kind, rows in (("gid", gid_map), ("uid", uid_map)):
                _map(own, kind, rows)
            status = 0
        finally:
            os._exit(status)
    os.close(reading)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(writing, b".")
    finally:
        os.close(writing)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(1, "its id maps are refused")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _map(pid: int, kind: str, rows: Rows) -> None:
    if os.geteuid():
        numbers = [str(number) for row in rows for number in row]
        program = f"new{kind}map"
        helper = os.posix_spawn(commands.trusted(program), [program, str(pid), *numbers], {})
        if os.waitpid(helper, 0)[1]:
            raise OSError(1, f"{program}: refused")
        return
    fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, "".join(f"{a} {b} {c}\n" for a, b, c in rows).encode())
    os.close(fd)
