"""Joining a process's cgroups (cgroups(7)): version 1, version 2, and both at once."""

from __future__ import annotations

import os

from cntr.linux import procfs, syscalls


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
        directory = directory_in(mounts, controllers, path)
        if directory is None:
            unreachable.append(controllers or "cgroup2")
        else:
            found.append(Membership(controllers, directory))
    return found, unreachable


def directory_in(mounts: list[procfs.Mount], controllers: str, path: str) -> str | None:
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
    """Whether joining would freeze the joiner."""
    if controllers and "freezer" not in controllers.split(","):
        return False
    try:
        return procfs.is_frozen(procfs.read(f"{directory}/{'freezer.state' if controllers else 'cgroup.events'}"))
    except OSError:
        return False  # version 1's root cgroup has no freezer.state: it cannot be frozen


class Memory:
    """The memory controller's directories of a cgroup and of those above it that limit it: what is free, and who was killed for it."""

    __slots__ = ("directories", "v2")

    def __init__(self, memberships: list[Membership]) -> None:
        """Of the memberships, the one with the memory controller; none where it is elsewhere or nowhere."""
        self.directories: list[str] = []
        self.v2 = False
        for found in memberships:
            limit = "memory.max" if not found.controllers else "memory.limit_in_bytes"
            directory = found.directory if not found.controllers or "memory" in found.controllers.split(",") else ""
            # The root cgroup of version 2 has no such file; of version 1 it is without a limit.
            while directory.count("/") > 2 and os.path.exists(f"{directory}/{limit}"):
                self.directories.append(directory)
                self.v2 = not found.controllers
                directory = directory.rpartition("/")[0]

    def room(self) -> tuple[int, int] | None:
        """(bytes that are free or hold file data that can be dropped, the limit) where that is least; None without a limit."""
        least: tuple[int, int] | None = None
        for directory in self.directories:
            try:
                found = self._room(directory)
            except (OSError, ValueError, KeyError):
                continue
            if found and (least is None or found[0] < least[0]):
                least = found
        return least

    def _room(self, directory: str) -> tuple[int, int] | None:
        limit, usage = ("max", "current") if self.v2 else ("limit_in_bytes", "usage_in_bytes")
        text = procfs.read(f"{directory}/memory.{limit}").strip()
        if text == "max" or int(text) >= NO_LIMIT:
            return None
        rows = (line.split() for line in procfs.read(f"{directory}/memory.stat").splitlines())
        stat = {row[0]: int(row[1]) for row in rows if len(row) == 2}
        prefix = "" if self.v2 else "total_"
        dropped = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
        dropped = max(0, dropped - stat.get("file_dirty" if self.v2 else "total_dirty", 0))
        used = int(procfs.read(f"{directory}/memory.{usage}"))
        return max(0, int(text) - max(0, used - dropped)), int(text)

    def kills(self) -> int:
        """How many processes of the cgroup itself the kernel has killed for lack of memory (memory.events, memory.oom_control)."""
        if not self.directories:
            return 0
        file = "memory.events" if self.v2 else "memory.oom_control"
        try:
            rows = [line.split() for line in procfs.read(f"{self.directories[0]}/{file}").splitlines()]
            return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)
        except (OSError, ValueError, IndexError):
            return 0

    def holds(self, membership: Membership) -> bool:
        """Whether joining this one would count the session's memory there."""
        return membership.directory in self.directories


NO_LIMIT = 1 << 62  # version 1 says PAGE_COUNTER_MAX in bytes


class CgroupJoin:
    """The files that let a process into the target's cgroups, opened now: the kernel checks the opener's credentials.

    Writing to a cgroup.procs moves a whole process and waits for that, 6-12 ms of RCU grace period. Both ways round it are used: in
    version 1 a process of one thread moves that thread by ``tasks``; in version 2 a child is forked straight into the cgroup.
    """

    __slots__ = ("directory_fd", "files", "inside", "memory", "own")

    def __init__(self, found: list[Membership], own: tuple[int, str] | None = None) -> None:
        """own: one made for the session, which goes with this: (fd of the directory above, name). Raises OSError naming the file."""
        self.own = own
        self.memory = Memory(found)  # whose limit holds for who joins
        self.files: list[tuple[int, str, bool]] = []  # fd, path, whether of version 2
        self.directory_fd = -1  # version 2's, for fork
        self.inside = False  # whether fork has put us into version 2's
        try:
            for membership in found:
                v2 = not membership.controllers
                path = f"{membership.directory}/{'cgroup.procs' if v2 else 'tasks'}"
                self.files.append((os.open(path, os.O_WRONLY | os.O_CLOEXEC), path, v2))
                if v2:
                    self.directory_fd = os.open(membership.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def fork(self) -> int:
        """fork(2), into version 2's cgroup where the kernel can (5.7); ``join`` does what is left to do. Raises OSError."""
        if self.directory_fd >= 0:
            self.inside = True
            try:
                return syscalls.fork(self.directory_fd)
            except OSError:
                self.inside = False  # too old a kernel, or a rule that writing to cgroup.procs will name
        return syscalls.fork()

    def join(self) -> None:
        """Move the calling process, of one thread, in. Raises OSError naming the file."""
        for fd, path, v2 in self.files:
            if v2 and self.inside:
                continue
            try:
                os.write(fd, b"0")
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None

    def remove(self) -> None:
        """The session's own cgroup, once nobody is in it."""
        if self.own:
            try:
                os.rmdir(self.own[1], dir_fd=self.own[0])
            except OSError:
                pass  # the other of supervisor and monitor was first, or somebody is still in it

    def close(self) -> None:
        """Close every fd."""
        if self.own:
            self.remove()
            os.close(self.own[0])
            self.own = None
        for fd, _, _ in self.files:
            os.close(fd)
        if self.directory_fd >= 0:
            os.close(self.directory_fd)
        self.files, self.directory_fd = [], -1
