"""Podman: rootful, and every user's rootless containers, by the state files of containers/storage and conmon.

Containers of another store (``--root``, a home directory that cannot be read) are found by their monitor: conmon's
arguments hold name, id and pidfile (conmon(8)).
"""

from __future__ import annotations

import os

from cntr.engines import evidence, pods, store, trust
from cntr.engines.container import Container, NotRunning
from cntr.engines.containers_storage import Known, checked, known_containers, running
from cntr.engines.store import answers_to
from cntr.linux import procfs


def find(name: str, deadline: float) -> list[Container]:
    """The running containers of that name or id prefix, of root and of each user."""
    found, stopped = [], None
    for known in known_containers(lambda row: answers_to(name, row.id, row.names)):
        if known.is_foreign():
            continue
        container = running(known)
        if container:
            found.append(container)
        else:
            stopped = known
    if not found and stopped:
        raise _ended(stopped, deadline)
    return found


def _ended(known: Known, deadline: float) -> NotRunning:
    """How it ended, from version 5's database; only podman itself can read the older one."""
    name = known.names[0] if known.names else known.id[:12]
    ending = pods.ending(known.store, known.id, deadline)
    if ending:
        return NotRunning(*store.ended("podman", name, *ending), called=name)
    return NotRunning(
        f"podman has {name}, but it is not running", f"`podman start {name}`, or see `podman logs {name}`", name
    )


def find_by_process(name: str, deadline: float) -> list[Container]:
    """The containers of that name or id prefix in stores at unusual places; then those of a pod."""
    elsewhere = [found for found in by_monitor("podman") if answers_to(name, found.id, [found.name])]
    return elsewhere or pods.find(name, deadline)


def containers(deadline: float) -> list[Container]:
    """All running containers of root and of each user."""
    rows = known_containers(lambda row: not row.is_foreign())
    found = [container for known in rows if (container := running(known))]
    ids = {container.id for container in found}
    return found + [container for container in by_monitor("podman") if container.id not in ids]


def by_monitor(engine: str) -> list[Container]:
    """The containers with a running conmon, from its arguments: -c ID -n NAME -p PIDFILE; its uid is the owner.

    CRI-O's monitors are conmons too; their names are k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
    """
    found = []
    for monitor, arguments in evidence.processes_named("conmon"):
        owner, id, name = evidence.speaker(monitor), evidence.option(arguments, "-c"), evidence.option(arguments, "-n")
        if name.startswith("k8s_") != (engine == "cri-o") or not trust.accepts(owner):
            continue
        if "-e" in arguments or "--exec" in arguments:
            continue  # the monitor of a `podman exec`: the same id and name, but not the container's first process
        try:
            pid = int(_pid_of(evidence.option(arguments, "-p"), owner, monitor))
        except (OSError, ValueError):
            continue  # gone, or another process
        container = checked(engine, name or id[:12], pid, id, "", owner)
        if container:
            found.append(container)
    return found


def _pid_of(pidfile: str, owner: int, monitor: int) -> str:
    """The text of the pid file, in the monitor's mount namespace, which may be its own."""
    try:
        return store.read(pidfile, owner=owner, limit=32)
    except FileNotFoundError:
        pass
    from cntr.linux import syscalls

    root = os.open(f"/proc/{monitor}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        place = syscalls.openat2(root, pidfile, os.O_PATH, resolve)
        try:
            if owner == 0 != trust.changer(os.fstat(place), f"/proc/self/fd/{place}"):
                raise OSError(1, "not root's", pidfile)
            return procfs.read(f"/proc/self/fd/{place}", limit=32)
        finally:
            os.close(place)
    finally:
        os.close(root)
