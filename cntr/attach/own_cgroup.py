"""A version 2 cgroup for one session, which restricts devices as the container's own does."""

from __future__ import annotations

import os
import time

from cntr.attach import cgroup
from cntr.errors import CntrError
from cntr.linux import bpf, procfs, syscalls


class OwnCgroup:
    """An empty version 2 cgroup whose processes may open the usual devices only."""

    def __init__(self, label: str) -> None:
        """label: the container's. Raises CntrError."""
        # The time is part of the name: pids repeat across pid namespaces, and a killed cntr may have left its
        # cgroup.
        self.name, self.parent_fd = f"cntr-{os.getpid()}-{time.monotonic_ns()}", -1
        mounted: list[int] = []
        try:
            self.parent_fd = os.open(_parent(mounted), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.mkdir(self.name, 0o755, dir_fd=self.parent_fd)
            try:
                self._restrict()
            except BaseException:
                os.rmdir(self.name, dir_fd=self.parent_fd)
                raise
        except OSError as error:
            if self.parent_fd >= 0:
                os.close(self.parent_fd)
            raise CntrError(
                f"{label}: outside its cgroup it could open all devices of this machine: {error.strerror}",
                "wait until it is no longer paused, leave out --no-cgroup, or see `cntr doctor` about cgroups",
            ) from None
        finally:
            for fd in mounted:
                os.close(fd)

    def _restrict(self) -> None:
        fd = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.parent_fd)
        try:
            program = bpf.load(bpf.usual_devices())
            try:
                bpf.attach(program, fd)
            finally:
                os.close(program)
        finally:
            os.close(fd)

    def membership(self) -> cgroup.Membership:
        """Return the cgroup as a membership to join."""
        return cgroup.Membership("", f"/proc/self/fd/{self.parent_fd}/{self.name}")


def _parent(mounted: list[int]) -> str:
    """Return the directory of the caller's own version 2 cgroup. Where none is mounted, as in a toolbox, mount one.
    Raises OSError.

    mounted: receives the fd of that mount, which must stay open while the path is used.
    """
    own = procfs.cgroups(procfs.read("/proc/self/cgroup")).get("", "/")
    mounts = [mount for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo")) if mount.fstype == "cgroup2"]
    found = cgroup.directory_in(mounts, "", own)
    if found is None or not os.access(found, os.W_OK):
        flags = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
        mounted.append(syscalls.new_filesystem("cgroup2", {}, flags))
        # both are relative to the root of our cgroup namespace
        found = f"/proc/self/fd/{mounted[0]}{own.rstrip('/')}"
    return found
