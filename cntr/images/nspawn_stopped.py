"""systemd-nspawn's machines that do not run: root directories and disk images in /var/lib/machines, their settings in NAME.nspawn
(systemd.nspawn(5)). A disk image is mounted for who says ``raw:NAME`` alone (see ``disk``); portable services' images are the same.
"""

from __future__ import annotations

import os
import shlex
import time

from cntr.engines import nspawn, store
from cntr.images import ImageError
from cntr.images.blueprint import Blueprint, Mount, named
from cntr.images.spec import LIMIT_NAMES, capability_mask

PLACES = ("/var/lib/machines", "/run/machines", "/usr/local/lib/machines", "/usr/lib/machines")
PORTABLES = ("/var/lib/portables", "/etc/portables", "/run/portables", "/usr/local/lib/portables", "/usr/lib/portables")
SETTINGS = ("/etc/systemd/nspawn", "/run/systemd/nspawn")
IDS = 65536  # of a machine with --private-users; its range starts at a multiple of this, which owns its root directory
# The capabilities that systemd-nspawn(1) leaves to a machine.
CAPABILITIES = (
    "AUDIT_CONTROL AUDIT_WRITE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_OWNER KILL LEASE LINUX_IMMUTABLE MKNOD "
    "NET_BIND_SERVICE NET_BROADCAST NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_NICE SYS_PTRACE "
    "SYS_RESOURCE SYS_TTY_CONFIG"
).split()


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The machine of that name. Raises ImageError."""
    if not store.is_component(name) or name.startswith("."):
        return []
    place = next((place for place in _places() if _kind(place, name)), "")
    return [blueprint(place, name)] if place and (running or not runs(name)) else []


def stopped(deadline: float) -> list[Blueprint]:
    """All, with the name only."""
    found: dict[str, Blueprint] = {}
    for place in _places():
        for entry in store.listdir(place):
            name = entry.removesuffix(".raw")
            if not name.startswith(".") and _kind(place, name) and name not in found and not runs(name):
                found[name] = named("nspawn", name)
                found[name].image = f"{place}/{entry}"
    return list(found.values())


def runs(name: str) -> bool:
    """Whether systemd-nspawn runs a machine of that name."""
    deadline = time.monotonic() + 2
    return bool(nspawn.find(name, deadline) or nspawn.find_by_process(name, deadline))


def _places() -> list[str]:
    return [*store.roots("nspawn", *PLACES), *PORTABLES]


def _kind(place: str, name: str) -> str:
    if os.path.isdir(f"{place}/{name}") and place not in PORTABLES:
        return "directory"
    return "raw" if os.path.isfile(f"{place}/{name}.raw") else ""


def blueprint(place: str, name: str) -> Blueprint:
    """Build it from its directory and settings. Raises ImageError."""
    made = named("nspawn", name)
    made.hostname, made.argv, made.capabilities = name[:64], ["/sbin/init"], capability_mask(CAPABILITIES)
    made.check = lambda: runs(name)
    settings = _settings(name)
    if _kind(place, name) == "raw":
        for key, values in settings.items():
            for value in values:
                _take(made, key, value)
        _take_disk(made, f"{place}/{name}.raw")
        return made
    made.upper = f"{place}/{name}"
    owner = os.stat(made.upper)
    if owner.st_uid and owner.st_uid % IDS == 0 and owner.st_gid == owner.st_uid:
        made.uid_map = made.gid_map = [(0, owner.st_uid, IDS)]
    elif owner.st_uid and "Exec.PrivateUsers" not in settings:
        raise ImageError(f"{made.label()}: {made.upper} is uid {owner.st_uid}'s, and no map says whose ids its are", "")
    for key, values in settings.items():
        for value in values:
            _take(made, key, value)
    return made


def _take_disk(made: Blueprint, path: str) -> None:
    from cntr.images.disk import Disk

    if runs(made.name):
        raise ImageError(f"{made.label()} runs, and its disk image with it", f"{made.label()}, without raw:")
    made.disk = Disk(path)
    made.closers.append(made.disk.close)
    made.shift = bool(made.uid_map)


def _settings(name: str) -> dict[str, list[str]]:
    """Section.Key → values of the administrator's file. systemd trusts a file beside the image only in part; it is not
    read here.
    """
    found: dict[str, list[str]] = {}
    for directory in SETTINGS:
        try:
            text = store.read(f"{directory}/{name}.nspawn", limit=store.MEGABYTE)
        except OSError:
            continue
        section = ""
        for line in text.splitlines():
            line = line.strip()
            key, equals, value = line.partition("=")
            if line.startswith("["):
                section = line.strip("[]")
            elif equals and line[0] not in "#;":
                found.setdefault(f"{section}.{key.strip()}", []).append(value.strip())
        break
    return found


def _take(made: Blueprint, key: str, value: str) -> None:
    if key == "Exec.Parameters":
        made.argv = _words(value)
    elif key == "Exec.Environment":
        made.environment.update(dict(word.partition("=")[::2] for word in _words(value) if "=" in word))
    elif key == "Exec.User":
        made.user = value
    elif key == "Exec.WorkingDirectory" and value.startswith("/"):
        made.directory = value
    elif key == "Exec.Hostname":
        made.hostname = value[:64]
    elif key == "Exec.AmbientCapability":
        made.ambient |= capability_mask(value.split())
    elif key == "Exec.NoNewPrivileges":
        made.no_new_privs = value in ("yes", "true", "1", "on")
    elif key == "Exec.Capability":
        made.capabilities |= capability_mask(["ALL"] if value == "all" else value.split())
    elif key == "Exec.DropCapability":
        made.capabilities &= ~capability_mask(value.split())
    elif key == "Exec.PrivateUsers":
        first, _, count = value.partition(":")
        if first.isdecimal() and (count or "1").isdecimal():
            made.uid_map = made.gid_map = [(0, int(first), int(count or IDS))]
    elif key == "Files.ReadOnly":
        made.read_only = value in ("yes", "true", "1", "on")
    elif key in ("Files.Bind", "Files.BindReadOnly"):
        source, _, rest = value.partition(":")
        destination, _, options = rest.partition(":")
        destination = destination or source
        if source.startswith("/") and destination.startswith("/"):
            read_only = key == "Files.BindReadOnly"
            made.mounts.append(Mount("bind", source, destination, read_only=read_only, options=options.split(",")))
    elif key == "Files.TemporaryFileSystem":
        place, _, options = value.partition(":")
        made.mounts.append(Mount("tmpfs", "", place, options=["mode=755", *options.split(",")]))
    elif key == "Files.Inaccessible":
        made.masked.append(value)
    elif key == "Exec.OOMScoreAdjust" and value.lstrip("-").isdecimal():
        made.oom_score_adj = int(value)
    elif key.startswith("Exec.Limit"):
        _limit(made, f"RLIMIT_{key[10:]}", value)


def _limit(made: Blueprint, name: str, value: str) -> None:
    """SOFT[:HARD], each a number or infinity; limits with a unit of size or time are left out."""
    words = value.split(":")
    if name in LIMIT_NAMES and len(words) < 3 and all(word.isdecimal() or word == "infinity" for word in words):
        numbers = [-1 if word == "infinity" else int(word) for word in words]
        made.limits[name] = numbers[0], numbers[-1]


def _words(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return value.split()
