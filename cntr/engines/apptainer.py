"""Apptainer and Singularity instances: ``instance start`` writes HOME/.apptainer/instances/app/HOST/USER/NAME.json with
the pid.

Instances of other users are found by their monitors, whose process title has user and instance.
"""

from __future__ import annotations

import os

from cntr.engines import evidence, pids, store, trust
from cntr.engines.container import Container
from cntr.linux import procfs

TITLES = {"Apptainer instance": "apptainer", "Singularity instance": "singularity"}
DIRECTORIES = ("apptainer/instances/app", "singularity/instances/sing")


def find(name: str, deadline: float) -> list[Container]:
    """The caller's own instance NAME."""
    return [found for found in _by_file() if name in (found.name, found.id)]


def find_by_process(name: str, deadline: float) -> list[Container]:
    """Instances NAME of every user, or USER/NAME."""
    return [found for found in _by_title() if name in (found.name, found.id)]


def containers(deadline: float) -> list[Container]:
    """All running instances of every user."""
    found = {container.pid: container for container in _by_title()}
    for container in _by_file():
        found.setdefault(container.pid, container)
    return list(found.values())


def _by_title() -> list[Container]:
    """A monitor's title is ``Apptainer instance: USER [NAME]``; its child is the instance's first process."""
    found = []
    for title in TITLES:
        for monitor, arguments in evidence.processes_named(title):
            user, _, name = arguments[0].partition(": ")[2].partition(" [")
            name, owner = name.rstrip("]"), evidence.speaker(monitor)
            user = _true_name(user, owner)
            for pid in evidence.children(monitor) if owner >= 0 and user else ():
                container = _checked(name, pid, owner, user)
                if container:
                    found.append(container)
                    break
    return found


def _true_name(user: str, uid: int) -> str:
    """The name of UID. If passwd has neither that uid nor the user name USER in the process's title, USER; else ""."""
    try:
        text = procfs.read("/etc/passwd")
    except OSError:
        return user
    entry = procfs.passwd_entry(text, str(uid))
    return entry[0] if entry else "" if procfs.passwd_entry(text, user) else user


def _by_file() -> list[Container]:
    """The caller's own instances, by their files."""
    found = []
    home = os.environ.get("APPTAINER_CONFIGDIR") or f"{store.home(os.geteuid())}/.apptainer"
    top = f"{home}/instances/app"
    if not trust.accepts(trust.owner_or_anybody(top)):
        return []
    for host in store.listdir(top):
        for user in store.listdir(f"{top}/{host}"):
            for name in store.listdir(f"{top}/{host}/{user}"):
                try:
                    record = store.load(f"{top}/{host}/{user}/{name}/{name}.json")
                    container = _checked(name, int(record["pid"]), trust.owner(top), user)
                except (OSError, ValueError, KeyError, TypeError):
                    continue
                if container:
                    found.append(container)
    return found


def _checked(name: str, pid: int, owner: int, user: str) -> Container | None:
    start = pids.start_time(pid)
    if not name or not start or not evidence.belongs_to(pid, owner):
        return None
    state = evidence.state(pid)
    return Container("apptainer", name, pid, id=f"{user}/{name}", state=state, owner=owner, start_time=start)
