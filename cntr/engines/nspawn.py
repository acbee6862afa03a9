"""systemd-nspawn: registered machines by /run/systemd/machines/NAME, others by their systemd-nspawn process."""

from __future__ import annotations

import os

from cntr.engines import evidence, pids, store
from cntr.engines.container import Container
from cntr.linux import procfs

MACHINES = "/run/systemd/machines"


def find(name: str, deadline: float) -> list[Container]:
    """The registered machine NAME."""
    return [found] if store.is_component(name) and ":" not in name and (found := _registered(name)) else []


def find_by_process(name: str, deadline: float) -> list[Container]:
    """The machine NAME that was started with --register=no."""
    return [container for container in _processes() if container.name == name]


def containers(deadline: float) -> list[Container]:
    """All running machines; registered virtual machines are ``sandboxed``."""
    found = {container.name: container for container in _processes()}
    for name in store.listdir(MACHINES):
        # Symbolic links such as ``unit:NAME`` point to a machine's file.
        if not name.startswith(".") and ":" not in name and name not in found and (container := _registered(name)):
            found[name] = container
    return list(found.values())


def _registered(name: str) -> Container | None:
    try:
        text = store.read(f"{MACHINES}/{name}", limit=store.MEGABYTE)
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")
        pid, owner = int(fields["LEADER"]), int(fields.get("UID", 0))  # newer systemd lets users register machines
    except (OSError, ValueError, KeyError):
        return None
    start = pids.start_time(pid)
    if not start:
        return None
    state = "sandboxed" if fields.get("CLASS") == "vm" else evidence.state(pid)
    return Container(
        *("nspawn", name, pid), id=name, state=state, owner=owner, start_time=start, image=fields.get("ROOT", "")
    )


def _processes() -> list[Container]:
    found = []
    for monitor, arguments in evidence.processes_named("systemd-nspawn"):
        if evidence.speaker(monitor) != 0:
            continue
        name, directory = machine_name(monitor, arguments)
        for pid in evidence.children(monitor):
            start = pids.start_time(pid)
            if start and name and _is_inside(pid):
                state = evidence.state(pid)
                found.append(Container("nspawn", name, pid, id=name, state=state, start_time=start, image=directory))
                break
    return found


def machine_name(monitor: int, arguments: list[str]) -> tuple[str, str]:
    """(name, directory or image) from a systemd-nspawn command line, by the rules of systemd-nspawn(1)."""
    arguments = [part for argument in arguments for part in _unbundled(argument)]
    source = evidence.option(arguments, "-D", "--directory", "-i", "--image", "--template")
    name = evidence.option(arguments, "-M", "--machine")
    if not source and not name:
        try:  # without either option, its working directory
            source = os.readlink(f"/proc/{monitor}/cwd")
        except OSError:
            return "", ""
    if not name:
        name = source.rstrip("/").rpartition("/")[2].removesuffix(".raw")
    return name, source or f"/var/lib/machines/{name}"


def _unbundled(argument: str) -> list[str]:
    """``-bD/srv/deb`` becomes ``-b -D/srv/deb``: split off short options that take no value."""
    parts = []
    while len(argument) > 2 and argument[0] == "-" and argument[1] in "baxqUPj":
        parts.append(argument[:2])
        argument = f"-{argument[2:]}"
    return [*parts, argument]


def _is_inside(pid: int) -> bool:
    """Whether PID is the first process of a pid namespace; nspawn also has helper children outside."""
    try:
        ids = procfs.status(procfs.read(f"/proc/{pid}/status")).get("NSpid", "").split()
    except OSError:
        return False
    return len(ids) > 1 and ids[-1] == "1"
