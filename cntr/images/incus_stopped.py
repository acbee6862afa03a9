"""LXD's and Incus's containers that do not run, through the API on their Unix socket (/1.0/instances)."""

from __future__ import annotations

import os
import time

from cntr.engines import docker, lxc, store, trust
from cntr.engines.container import NotRunning, Refused
from cntr.images import ImageError, spec
from cntr.images.blueprint import Blueprint, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

QUESTION = "/1.0/instances?recursion=1&all-projects=true"


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The container of that name, or PROJECT/NAME. Raises ImageError, OSError."""
    project, slash, last = name.rpartition("/")
    return [
        blueprint(engine, root, row)
        for engine, root, row in _rows(deadline, running=running)
        if last == row.get("name") and (not slash or project == row.get("project"))
    ]


def stopped(deadline: float) -> list[Blueprint]:
    """All, with the name and the image's origin only."""
    return [_named(engine, row) for engine, _, row in _rows(deadline)]


def _rows(deadline: float, *, running: bool = False) -> list[tuple[str, str, dict[str, Any]]]:
    """(engine, its directory, the API's description) of each container; virtual machines have no root directory here."""
    found = []
    for engine in lxc.MANAGERS:
        for root in lxc._roots(engine):
            path = f"{root}/unix.socket"
            if not os.path.exists(path) or not trust.accepts(trust.owner_or_anybody(path)):
                continue
            try:
                _, answer = docker._get(path, QUESTION, 0, deadline)
            except (ConnectionRefusedError, Refused):
                continue
            rows = spec.mapping(answer).get("metadata")
            found += [
                (engine, root, row)
                for row in (rows if isinstance(rows, list) else [])
                if isinstance(row, dict)
                and row.get("type") == "container"
                and (running or row.get("status") == "Stopped")
            ]
    return found


def _named(engine: str, row: dict[str, Any]) -> Blueprint:
    name, project = str(row.get("name") or ""), str(row.get("project") or "default")
    made = Blueprint(engine, name if project == "default" else f"{project}/{name}")
    made.id, made.state = made.name, "stopped"
    made.image = str(spec.mapping(row.get("config")).get("image.description") or "")
    return made


def blueprint(engine: str, root: str, row: dict[str, Any]) -> Blueprint:
    """Build it from the description of an instance. Raises ImageError."""
    made = _named(engine, row)
    settings = spec.mapping(row.get("expanded_config"))
    called = made.name.replace("/", "_", 1)
    made.upper = f"{root}/containers/{called}/rootfs"
    if not store.is_component(called) or not os.path.isdir(made.upper):
        raise ImageError(
            f"{made.label()}: its root {made.upper} is not there: its storage pool is mounted only while it runs",
            f"`{engine} start`, or `{engine} file` for single files",
        )
    made.capabilities, made.hostname, made.argv = (
        spec.capability_mask(["ALL"]),
        str(row.get("name"))[:64],
        ["/sbin/init"],
    )
    if settings.get("security.privileged") not in ("true", "1"):
        _take_maps(made, settings)
    for key, value in settings.items():
        if key.startswith("environment."):
            made.environment[key[12:]] = str(value)
    for device in spec.mapping(row.get("expanded_devices")).values():
        device = spec.mapping(device)
        source, target = str(device.get("source") or ""), str(device.get("path") or "")
        if device.get("type") == "disk" and source.startswith("/") and target.startswith("/") and target != "/":
            made.mounts.append(Mount("bind", source, target, read_only=device.get("readonly") == "true"))
    made.check = lambda: runs(called)
    return made


def runs(name: str) -> bool:
    """Whether LXC, LXD or Incus runs a container of that name."""
    try:
        return any(one.name == name for one in lxc.find(name, time.monotonic() + 2))
    except NotRunning:
        return False
    except Refused:
        return True  # its monitor is running


def _take_maps(made: Blueprint, settings: dict[str, Any]) -> None:
    """Set the user namespace. If the kernel shifts ids on the mount, the files have the image's ids; otherwise they are
    shifted on disk.
    """
    on_disk, next = (_maps(settings.get(f"volatile.{key}.idmap")) for key in ("last_state", "idmap"))
    next = _maps(settings.get("volatile.idmap.next")) or _maps(settings.get("volatile.idmap.current")) or next
    made.uid_map, made.gid_map = next if next[0] else on_disk
    made.shift = not on_disk[0]
    if not made.uid_map:
        raise ImageError(
            f"{made.label()}: it has never been started, and so has no ids yet", f"`{made.engine} start {made.name}`"
        )


def _maps(text: object) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """(users, groups) of a map in LXD's format:
    [{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":1000000000}, …].
    """
    try:
        rows = store.parse(str(text or "[]"))
        kinds = [
            [(int(row["Nsid"]), int(row["Hostid"]), int(row["Maprange"])) for row in rows if row[kind] is True]
            for kind in ("Isuid", "Isgid")
        ]
    except (ValueError, KeyError, TypeError):
        return [], []
    return kinds[0], kinds[1]
