"""Joining a process's cgroups (cgroups(7)): version 1, version 2, and both at once."""

from __future__ import annotations

import os

from cntr import procfs


class Membership:
    """One hierarchy the target is a member of and we are not yet: its controllers and its directory in our mounts."""

    __slots__ = ("controllers", "directory", "frozen")

    def __init__(self, controllers: str, directory: str) -> None:
        """controllers: e.g. ``memory`` or ``name=systemd``; empty for version 2."""
        self.controllers, self.directory = controllers, directory
        self.frozen = _frozen(directory, controllers)

    def label(self) -> str:
        """What a report calls it."""
        return self.controllers or "cgroup2"


def memberships(target: str, own: str, mountinfo: str) -> tuple[list[Membership], list[str]]:
    """What to join, and the controllers of what is not reachable through our cgroup mounts.

    target, own: text of /proc/PID/cgroup; mountinfo: text of our own mountinfo.
    """
    mounts = [procfs.Mount(line) for line in mountinfo.split("\n") if " - cgroup" in line]
    theirs, ours = procfs.cgroups(target), procfs.cgroups(own)
    found, unreachable = [], []
    for controllers, path in theirs.items():
        if ours.get(controllers) == path:
            continue
        directory = _directory(mounts, controllers, path)
        if directory is None:
            unreachable.append(controllers or "cgroup2")
        else:
            found.append(Membership(controllers, directory))
    return found, unreachable


def _directory(mounts: list[procfs.Mount], controllers: str, path: str) -> str | None:
    """Where PATH of a hierarchy lies in our mounts; both sides are relative to our cgroup namespace's root."""
    wanted = set(controllers.split(","))
    for mount in mounts:
        fits = mount.fstype == "cgroup" and wanted <= set(mount.super) if controllers else mount.fstype == "cgroup2"
        root = mount.root.rstrip("/")
        if fits and not path.startswith("/..") and (path + "/").startswith(root + "/"):
            directory = mount.mount_point + path[len(root) :].rstrip("/")
            if os.path.isdir(directory):
                return directory
    return None


def _frozen(directory: str, controllers: str) -> bool:
    """Whether joining would freeze the joiner: version 1 FROZEN or FREEZING, version 2 ``frozen 1``."""
    try:
        if controllers == "":
            return "\nfrozen 1" in "\n" + procfs.read(f"{directory}/cgroup.events")
        if "freezer" in controllers.split(","):
            return procfs.read(f"{directory}/freezer.state").strip() != "THAWED"
    except OSError:
        return False  # version 1's root cgroup has no freezer.state: it cannot be frozen
    return False


def open_procs(found: list[Membership]) -> list[tuple[int, str]]:
    """[(fd, path)] of each cgroup.procs, opened for writing now: the kernel checks the opener's credentials.

    Raises OSError naming the file.
    """
    opened: list[tuple[int, str]] = []
    try:
        for membership in found:
            path = f"{membership.directory}/cgroup.procs"
            opened.append((os.open(path, os.O_WRONLY | os.O_CLOEXEC), path))
    except BaseException:
        for fd, _ in opened:
            os.close(fd)
        raise
    return opened


def join(opened: list[tuple[int, str]]) -> None:
    """Move the calling process in. Raises OSError naming the file."""
    for fd, path in opened:
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
