"""A stand-in's cgroup: the container's limits on memory and processes, version 1 or 2, for as long as the stand-in
lives.
"""

from __future__ import annotations

import os
import time

from cntr.linux import procfs

LIMITS = {
    "memory": ("memory.max", "memory.limit_in_bytes"),
    "pids": ("pids.max", "pids.max"),
}  # controller → files of version 2 and of version 1
SECONDS = 5.0


class Cgroup:
    """``directories``: one in each hierarchy with one of the controllers; ``missing``: limits that cannot be enforced
    here.
    """

    def __init__(self, limits: dict[str, int]) -> None:
        """Create them. limits: controller → bytes or processes."""
        self.directories: list[str] = []
        self.missing: list[str] = []
        name = f"cntr-stand-in-{os.getpid()}-{time.monotonic_ns()}"
        mounts = [
            mount
            for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
            if mount.fstype.startswith("cgroup")
        ]
        for controller, limit in limits.items():
            try:
                self._limit(mounts, name, controller, limit)
            except OSError:
                self.missing.append(controller)

    def _limit(self, mounts: list[procfs.Mount], name: str, controller: str, limit: int) -> None:
        for mount in mounts:
            version2 = mount.fstype == "cgroup2"
            known = (
                procfs.read(f"{mount.mount_point}/cgroup.subtree_control").split() if version2 else list(mount.super)
            )
            if controller not in known:
                continue
            directory = f"{mount.mount_point}/{name}"
            if directory not in self.directories:
                os.mkdir(directory, 0o755)
                self.directories.append(directory)
            write(f"{directory}/{LIMITS[controller][0 if version2 else 1]}", str(limit))
            return
        raise FileNotFoundError(2, "no hierarchy has this controller", controller)

    def join(self) -> None:
        """Move this process into them. Raises OSError."""
        for directory in self.directories:
            write(f"{directory}/cgroup.procs", "0")

    def remove(self) -> None:
        """Remove them, after the last process in them has been reaped."""
        deadline = time.monotonic() + SECONDS
        while self.directories and time.monotonic() < deadline:
            try:
                os.rmdir(self.directories[-1])
            except FileNotFoundError:
                pass
            except OSError:
                time.sleep(0.005)
                continue
            self.directories.pop()


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
