"""The target ``unit:NAME.service``: a unit of systemd."""

from __future__ import annotations

import time

from cntr.engines import evidence, processes
from cntr.errors import AmbiguousTarget, TargetNotFound, printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.container import Container

STARTING_SECONDS = 5.0  # seconds that a unit may take until it runs its program


def resolve(name: str) -> Container:
    """Find the main process of unit NAME. Raises TargetNotFound, AmbiguousTarget.

    A system unit goes before a user's unit of that name (systemd.unit(5)), which that user controls.
    """
    unit = name if "." in name else f"{name}.service"
    if "/" in unit or unit.startswith("."):
        raise TargetNotFound(f"unit:{printable(unit)}: not a unit name", "systemctl list-units shows the names")
    found: dict[int, list[int]] = {}
    for pid in processes.processes():
        owner = _unit_owner(pid, unit)
        if owner >= 0 and (owner == 0 or evidence.belongs_to(pid, owner)):
            found.setdefault(owner, []).append(pid)
    if not found:
        raise TargetNotFound(
            f"unit:{printable(unit)}: no process in such a unit", "is it active? systemctl status shows it"
        )
    if 0 not in found and len(found) > 1:
        from cntr.engines import store

        users = ", ".join(store.owner_name(owner) for owner in sorted(found)[:8])
        raise AmbiguousTarget(f"unit:{printable(unit)}: the unit of {len(found)} users: {users}", "attach by pid")
    owner = 0 if 0 in found else next(iter(found))
    pid = _main(unit, owner, found[owner])
    _await_program(unit, pid)
    return evidence.started("unit", unit, pid, owner)


def _await_program(unit: str, pid: int) -> None:
    """Wait until the manager's child has executed the unit's program, because its root and namespaces are set up until
    then.

    systemd names that child after the program, in brackets (rename_process in its exec-invoke.c). Raises
    TargetNotFound.
    """
    deadline = time.monotonic() + STARTING_SECONDS
    try:
        while (name := procfs.read(f"/proc/{pid}/comm").strip()).startswith("(") and name.endswith(")"):
            if time.monotonic() > deadline:
                raise TargetNotFound(
                    f"unit:{printable(unit)}: pid {pid} has not become its program yet",
                    "systemctl status shows how far it is",
                )
            time.sleep(0.01)
    except OSError:
        pass  # it has ended; opening it will say so


def _unit_owner(pid: int, unit: str) -> int:
    """Whose UNIT process PID is in: 0 for the system's, else the uid of the user manager; -1 if it is in no unit of
    that name.
    """
    try:
        text = procfs.read(f"/proc/{pid}/cgroup")
    except OSError:
        return -1
    if unit not in text:
        return -1
    paths = procfs.cgroups(text)
    return max(owner_in(paths.get(hierarchy, "/"), unit) for hierarchy in ("name=systemd", ""))


def owner_in(path: str, unit: str) -> int:
    """The same for a cgroup path. systemd creates units only below slices, each of which is named
    after its parent.

    Anything below a unit does not count: users and containers can create directories of any name
    there.
    """
    words, owner, prefix = path.split("/")[1:], 0, ""
    while words:
        word = words.pop(0)
        if word == unit:
            return -1 if words[:1] == [".control"] else owner
        if word.endswith(".slice") and _is_in_slice(word, prefix):
            prefix = word.removesuffix(".slice")
        elif prefix.startswith("user-") and word == f"user@{prefix.removeprefix('user-')}.service" and not owner:
            number = prefix.removeprefix("user-")
            if not number.isdecimal():
                return -1
            owner, prefix = int(number), ""
        else:
            return -1
    return -1


def _is_in_slice(word: str, prefix: str) -> bool:
    name = word.removesuffix(".slice")
    return name.rpartition("-")[0] == prefix if prefix else "-" not in name


def _main(unit: str, owner: int, pids: list[int]) -> int:
    """The process that the unit's other processes descend from; if there are several, the one that systemd calls the
    main process.
    """
    inside = set(pids)
    heads = [pid for pid in pids if _parent(pid) not in inside]
    if len(heads) == 1:
        return heads[0]
    from cntr.engines import commands

    main = commands.main_pid(unit) if owner == 0 else 0
    if main in inside:
        return main
    listed = ", ".join(str(pid) for pid in sorted(heads)[:8])
    raise AmbiguousTarget(f"unit:{printable(unit)}: {len(heads)} processes of its own: {listed}", "attach by pid")


def _parent(pid: int) -> int:
    try:
        return procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    except OSError:
        return 0
