"""Targets without an engine: ``pid:N``, ``unit:NAME.service`` (systemd), ``command:PATTERN``."""

from __future__ import annotations

import os

from cntr.engines.container import Container
from cntr.errors import AmbiguousTarget, TargetNotFound, printable
from cntr.linux import procfs


def resolve(kind: str, name: str) -> Container:
    """The process behind pid:NAME, unit:NAME or command:NAME. Raises TargetNotFound, AmbiguousTarget."""
    return {"pid": _pid, "unit": _unit, "command": _command}[kind](name)


def _pid(name: str) -> Container:
    if not (name.isascii() and name.isdecimal()) or not 0 < int(name) < 1 << 22:
        raise TargetNotFound(f"pid:{printable(name[:40])}: not a process id", "a pid is a number, as `ps` shows it")
    try:
        start = procfs.start_time(procfs.read(f"/proc/{int(name)}/stat"))
    except OSError:
        raise TargetNotFound(
            f"pid {int(name)}: no such process", "`cntr ps` lists containers with their pids"
        ) from None
    return Container("pid", str(int(name)), int(name), start_time=start)


def _unit(name: str) -> Container:
    """The unit's main process: the first pid of its cgroup, which systemd names after the unit (systemd.resource-control(5))."""
    unit = name if "." in name else f"{name}.service"
    if "/" in unit or unit.startswith("."):
        raise TargetNotFound(f"unit:{printable(unit)}: not a unit name", "systemctl list-units shows the names")
    pids = []
    for pid in _processes():
        try:
            paths = procfs.cgroups(procfs.read(f"/proc/{pid}/cgroup"))
        except OSError:
            continue
        path = paths.get("") or paths.get("name=systemd", "")
        if f"/{unit}" in path and unit in path.split("/"):
            pids.append(pid)
    if not pids:
        raise TargetNotFound(
            f"unit:{printable(unit)}: no process in such a unit", "is it active? systemctl status shows it"
        )
    inside = set(pids)
    heads = [pid for pid in pids if _parent(pid) not in inside]
    return _started("unit", unit, min(heads or pids, key=lambda pid: _start(pid)))


def _command(pattern: str) -> Container:
    """The one process whose command line holds PATTERN; its own ancestors and cntr itself do not count."""
    own = {os.getpid(), os.getppid()}
    found = []
    for pid in _processes():
        try:
            command = procfs.read(f"/proc/{pid}/cmdline", limit=1 << 16).replace("\0", " ").strip()
        except OSError:
            continue
        if pattern and pattern in command and pid not in own and f"command:{pattern}" not in command:
            found.append((pid, command))
    if not found:
        raise TargetNotFound(
            f"command:{printable(pattern[:60])}: no process has that in its command line", "see `ps axww`"
        )
    if len(found) > 1:
        listed = ", ".join(f"{pid} ({printable(command[:40])})" for pid, command in found[:6])
        raise AmbiguousTarget(
            f"command:{printable(pattern[:60])}: {len(found)} processes match: {listed}", "attach by pid"
        )
    return _started("command", pattern, found[0][0])


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _start(pid: int) -> int:
    try:
        return procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
    except OSError:
        return 1 << 62


def _parent(pid: int) -> int:
    try:
        return procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    except OSError:
        return 0


def _started(engine: str, name: str, pid: int) -> Container:
    start = _start(pid)
    if start == 1 << 62:
        raise TargetNotFound(f"{engine}:{printable(name)}: its process {pid} is gone", "is it still running?")
    return Container(engine, name, pid, start_time=start)
