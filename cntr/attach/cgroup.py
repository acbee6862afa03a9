"""Joining a process's cgroups (cgroups(7)): version 1, version 2, and both at once."""

from __future__ import annotations

import os

from cntr.linux import procfs, syscalls


class Membership:
    """One hierarchy that the target is a member of and we are not: its controllers, and its directory in our
    mounts.
    """

    __slots__ = ("controllers", "directory", "frozen")

    def __init__(self, controllers: str, directory: str) -> None:
        """controllers: e.g. ``memory`` or ``name=systemd``; empty for version 2."""
        self.controllers, self.directory = controllers, directory
        self.frozen = _frozen(directory, controllers)

    def label(self) -> str:
        """The name used in reports."""
        return self.controllers or "cgroup2"


def memberships(target: str, own: str, mountinfo: str) -> tuple[list[Membership], list[str]]:
    """Return the memberships to join, and the controllers that cannot be reached through our cgroup mounts.

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
    """Return where PATH of a hierarchy is in our mounts. Both are relative to the root of our cgroup namespace."""
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
    """The memory controller's directories: those of a cgroup and of its limited ancestors. Tells how much memory is
    free, and how many processes were killed.
    """

    __slots__ = ("directories", "v2")

    def __init__(self, memberships: list[Membership]) -> None:
        """Take the membership that has the memory controller, if any."""
        self.directories: list[str] = []
        self.v2 = False
        for found in memberships:
            limit = "memory.max" if not found.controllers else "memory.limit_in_bytes"
            directory = found.directory if not found.controllers or "memory" in found.controllers.split(",") else ""
            # In version 2 the root cgroup has no such file; in version 1 it has no limit.
            while directory.count("/") > 2 and os.path.exists(f"{directory}/{limit}"):
                self.directories.append(directory)
                self.v2 = not found.controllers
                directory = directory.rpartition("/")[0]

    def room(self) -> tuple[int, int] | None:
        """Return (free bytes, limit) of the tightest directory, None without a limit. File data that can be dropped
        counts as free.
        """
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
        """How many processes of this cgroup the kernel has killed for lack of memory (memory.events,
        memory.oom_control).
        """
        if not self.directories:
            return 0
        file = "memory.events" if self.v2 else "memory.oom_control"
        try:
            rows = [line.split() for line in procfs.read(f"{self.directories[0]}/{file}").splitlines()]
            return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)
        except (OSError, ValueError, IndexError):
            return 0

    def holds(self, membership: Membership) -> bool:
        """Whether joining this membership would charge the session's memory to it."""
        return membership.directory in self.directories


NO_LIMIT = 1 << 62  # version 1 says PAGE_COUNTER_MAX in bytes


class CgroupJoin:
    """The files that admit a process into the target's cgroups. They are opened early: the kernel checks the
    opener's credentials.

    Writing to cgroup.procs moves a whole process and waits for an RCU grace period, 6-12 ms. Two ways avoid the
    wait: in version 1 a single-threaded process moves its thread through ``tasks``; in version 2 a child is forked
    straight into the cgroup.
    """

    __slots__ = ("directory_fd", "files", "inside", "memory", "own")

    def __init__(self, found: list[Membership], own: tuple[int, str] | None = None) -> None:
        """own: (fd of the parent directory, name) of a cgroup made for the session and removed with it. Raises
        OSError naming the file.
        """
        self.own = own
        self.memory = Memory(found)  # its limit holds for every process that joins
        self.files: list[tuple[int, str, bool]] = []  # fd, path, whether of version 2
        self.directory_fd = -1  # version 2's, for fork
        self.inside = False  # whether fork has put us into the version 2 cgroup
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
        """fork(2), into the version 2 cgroup if the kernel can (5.7); ``join`` does the rest. Raises OSError."""
        if self.directory_fd >= 0:
            self.inside = True
            try:
                return syscalls.fork(self.directory_fd)
            except OSError:
                self.inside = False  # too old a kernel, or a rule that the write to cgroup.procs will report
        return syscalls.fork()

    def join(self) -> None:
        """Move the calling process, which has one thread, into the cgroups. Raises OSError naming the file."""
        for fd, path, v2 in self.files:
            if v2 and self.inside:
                continue
            try:
                os.write(fd, b"0")
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None

    def remove(self) -> None:
        """Remove the session's own cgroup once it is empty."""
        if self.own:
            try:
                os.rmdir(self.own[1], dir_fd=self.own[0])
            except OSError:
                pass  # the supervisor or the monitor has removed it already, or it still has members

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
