"""LXC's containers that do not run, by their configuration files (lxc.container.conf(5)), and LXD's and Incus's."""

from __future__ import annotations

import os

from cntr.engines import lxc, store, trust
from cntr.errors import printable
from cntr.images import ImageError, incus_stopped
from cntr.images.blueprint import Blueprint, Mount, named
from cntr.images.spec import CAPABILITIES, capability_mask, limit

ALL = (1 << len(CAPABILITIES)) - 1
INCLUDES = 64
DIRECTORIES = ("dir", "btrfs", "rootfs")  # kinds of lxc.rootfs.path that are always a directory
MAPS = {"u": "uid_map", "g": "gid_map"}


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The container NAME; for LXD and Incus also PROJECT/NAME. Raises ImageError."""
    found = [
        blueprint(directory, name)
        for directory in lxc.directories()
        if store.is_component(name)
        and os.path.isfile(f"{directory}/{name}/config")
        and (running or not incus_stopped.runs(name))
    ]
    return found + incus_stopped.find(name, deadline, running=running)


def stopped(deadline: float) -> list[Blueprint]:
    """All, with the name only."""
    found = []
    for directory in lxc.directories():
        for name in store.listdir(directory):
            if os.path.isfile(f"{directory}/{name}/config") and not incus_stopped.runs(name):
                found.append(named("lxc", name))
                found[-1].owner = max(0, trust.owner_or_anybody(directory))
    return found + incus_stopped.stopped(deadline)


def _configuration(path: str, left: list[int]) -> list[tuple[str, str]]:
    """The settings of a configuration file, with those of its includes in place. Raises OSError."""
    found = []
    for key, value in lxc.settings(store.read(path, limit=store.MEGABYTE)):
        if key != "lxc.include":
            found.append((key, value))
            continue
        names = [f"{value}/{name}" for name in sorted(store.listdir(value)) if name.endswith(".conf")]
        for name in names or [value]:
            left[0] -= 1
            if left[0] >= 0 and os.path.isfile(name):
                found += _configuration(name, left)
    return found


def blueprint(directory: str, name: str) -> Blueprint:
    """Build it from its configuration. Raises ImageError, OSError."""
    made = named("lxc", name)
    settings = _configuration(f"{directory}/{name}/config", [INCLUDES])
    last = dict(settings)
    _root(made, last.get("lxc.rootfs.path") or f"{directory}/{name}/rootfs")
    made.capabilities, made.hostname = ALL, last.get("lxc.uts.name", name)[:64]
    made.argv = (last.get("lxc.init.cmd") or last.get("lxc.execute.cmd") or "/sbin/init").split()
    made.user = f"{last.get('lxc.init.uid', '0')}:{last.get('lxc.init.gid', '0')}"
    made.directory = last.get("lxc.init.cwd") or "/"
    made.no_new_privs, made.read_only = (
        last.get("lxc.no_new_privs") == "1",
        "ro" in last.get("lxc.rootfs.options", "").split(","),
    )
    made.environment["container"] = "lxc"
    made.masked = []
    if not last.get("lxc.seccomp.profile"):
        made.seccomp = "unconfined"
    made.check = lambda: incus_stopped.runs(name)
    if last.get("lxc.net.0.type") == "none" or "net" in last.get("lxc.namespace.keep", "").split():
        made.share.add("net")
    for key, value in settings:
        _take(made, key, value)
    owner = trust.owner_or_anybody(directory)
    if owner > 0:  # a user's container, which has that user's ids
        made.owner, made.overlay = owner, {"userxattr": ""}
    return made


def _root(made: Blueprint, path: str) -> None:
    kind, _, rest = path.partition(":")
    if path.startswith("/"):
        kind, rest = "dir", path
    if kind in ("overlay", "overlayfs") and rest.count(":") == 1:
        lower, made.upper = rest.split(":")
        made.lower, made.work = [lower], f"{os.path.dirname(made.upper)}/olwork"  # liblxc uses this name
    elif kind in DIRECTORIES and os.path.isdir(rest):
        made.upper = rest
    else:
        raise ImageError(
            f"{made.label()}: its root {printable(path)} is no directory here", "mount it, then `dir:PATH`"
        )


def _take(made: Blueprint, key: str, value: str) -> None:
    words = value.split()
    if key == "lxc.idmap" and len(words) == 4 and words[0] in MAPS and all(word.isdecimal() for word in words[1:]):
        inside, outside, count = map(int, words[1:])
        getattr(made, MAPS[words[0]]).append((inside, outside, count))
    elif key == "lxc.cap.drop":
        made.capabilities = made.capabilities & ~capability_mask(words) if words else ALL
    elif key == "lxc.cap.keep":
        made.capabilities = 0 if words == ["none"] else capability_mask(words)
    elif key == "lxc.init.groups":
        made.groups = value.replace(",", " ").split()
    elif key == "lxc.proc.oom_score_adj" and value.lstrip("-").isdecimal():
        made.oom_score_adj = int(value)
    elif key.startswith("lxc.sysctl."):
        made.sysctls[key[11:]] = value
    elif key == "lxc.environment" and "=" in value:
        name, _, made.environment[name] = value.partition("=")
    elif key.startswith("lxc.prlimit."):
        soft, _, hard = value.partition(":")
        numbers = [
            -1 if word == "unlimited" else int(word)
            for word in (soft, hard or soft)
            if word.isdecimal() or word == "unlimited"
        ]
        found = limit(*numbers) if len(numbers) == 2 else None
        if found:
            made.limits[f"RLIMIT_{key[12:].upper()}"] = found
    elif key == "lxc.mount.entry" and len(words) >= 4:
        source, destination, kind, options = words[0], "/" + words[1].lstrip("/"), words[2], words[3].split(",")
        if kind == "tmpfs":
            made.mounts.append(
                Mount("tmpfs", "", destination, read_only="ro" in options, options=["mode=1777", *options])
            )
        elif (
            {"bind", "rbind"} & set(options)
            and source.startswith("/")
            and (os.path.exists(source) or "optional" not in options)
        ):
            made.mounts.append(Mount("bind", source, destination, read_only="ro" in options, options=options))
