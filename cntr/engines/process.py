"""Targets without an engine: ``pid:N``, ``unit:NAME.service`` (systemd); ``command_line`` has ``command:PATTERN``."""

from __future__ import annotations

import os
import time

from cntr.engines import evidence
from cntr.engines.container import Container
from cntr.errors import AmbiguousTarget, TargetNotFound, printable
from cntr.linux import procfs

PF_KTHREAD = 0x00200000  # linux/sched.h


def resolve(kind: str, name: str) -> Container:
    """Find the process of pid:NAME or unit:NAME. Raises TargetNotFound, AmbiguousTarget."""
    return _unit(name) if kind == "unit" else _pid(name)


def is_pid(name: str) -> bool:
    """Whether NAME may be a bare pid: pids end at 1 << 22 (proc_sys_kernel(5)), and container ids may be all digits
    too.
    """
    return name.isascii() and name.isdecimal() and len(name) < 8


def _pid(name: str) -> Container:
    """Process N, or N@START for process N if it has that start time (proc_pid_stat(5), field 22)."""
    name, at, wanted = name.partition("@")
    if not is_pid(name) or not 0 < int(name) < 1 << 22:
        raise TargetNotFound(f"pid:{printable(name[:40])}: not a process id", "a pid is a number, as `ps` shows it")
    pid = int(name)
    try:
        stat = procfs.read(f"/proc/{pid}/stat")
    except OSError:
        raise TargetNotFound(f"pid {pid}: no such process", _elsewhere(pid)) from None
    fields = stat.rpartition(")")[2].split()
    if int(fields[6]) & PF_KTHREAD:
        raise TargetNotFound(
            f"pid {pid} is a kernel thread: it has no files and no container", "`cntr ps` lists containers"
        )
    start = evidence.start_time(pid)
    if not start:
        raise TargetNotFound(
            f"pid {pid} has ended: it is a zombie that its parent, pid {fields[1]}, has not waited for",
            "its container may have other processes; `cntr ps` lists containers with their pids",
        )
    if at and wanted != str(start):
        raise TargetNotFound(f"pid {pid} belongs to another process now", "the container has stopped")
    return Container("pid", str(pid), pid, owner=owner_of(pid), start_time=start)


def owner_of(pid: int) -> int:
    """The owner of PID's user namespace; 0 if it is in ours, or that is not visible."""
    try:
        return evidence.namespace_owner(pid) or 0
    except OSError:
        return 0


def _elsewhere(number: int) -> str:
    """The hint for a pid that does not exist here: it may be one inside a container."""
    usual = "`cntr ps` lists containers with their pids"
    found = []
    for pid in processes():
        try:
            ids = procfs.status(procfs.read(f"/proc/{pid}/status")).get("NSpid", "").split()
        except OSError:
            continue
        if str(number) in ids[1:]:
            found.append(pid)
    if not found:
        return usual
    return (
        f"inside a container's pid namespace that is the number of pid {', '.join(map(str, found[:4]))} here; {usual}"
    )


def is_nobodys(pid: int, beside: str = "self") -> bool:
    """Whether PID is in no container: it shares mount, pid and user namespaces and root directory with this process, or
    with BESIDE.
    """
    try:
        return all(
            os.path.samestat(os.stat(f"/proc/{pid}/{name}"), os.stat(f"/proc/{beside}/{name}"))
            for name in ("ns/mnt", "ns/pid", "ns/user", "root")
        )
    except OSError:
        return False  # it is another user's


STARTING_SECONDS = 5.0  # how long a unit may take until it runs its program


# --- systemd's units --------------------------------------------------------------------------------------------------


def _unit(name: str) -> Container:
    """The unit's main process. A system unit goes before a user's unit of that name (systemd.unit(5)), which that user
    controls.
    """
    unit = name if "." in name else f"{name}.service"
    if "/" in unit or unit.startswith("."):
        raise TargetNotFound(f"unit:{printable(unit)}: not a unit name", "systemctl list-units shows the names")
    found: dict[int, list[int]] = {}
    for pid in processes():
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
    return started("unit", unit, pid, owner)


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
        pass  # it has ended, which opening it will report


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
    """The same for a cgroup path. systemd puts a unit only below slices, each named after the one above.

    Anything below a unit does not count: users and containers can create directories of any name there.
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


def processes() -> list[int]:
    """The pids that there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parent(pid: int) -> int:
    try:
        return procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    except OSError:
        return 0


def started(engine: str, name: str, pid: int, owner: int) -> Container:
    """A Container of a process that was found. Raises TargetNotFound if it has ended."""
    start = evidence.start_time(pid)
    if not start:
        raise TargetNotFound(f"{engine}:{printable(name)}: its process {pid} is gone", "is it still running?")
    return Container(engine, name, pid, owner=owner, start_time=start)
