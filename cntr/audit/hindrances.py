"""What a caller could have prepared to keep cntr from its part under root's policy: the end in time, and its record.

All of this passes through sudo(8) and execve(2). What cannot be undone is refused.
"""

from __future__ import annotations

import _signal as signal
import os

from cntr.errors import Refused, printable
from cntr.linux import procfs

TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def remove() -> None:
    """Undo them, as root. Raises Refused."""
    for timer in TIMERS:  # setitimer(2): its signal would kill us
        signal.setitimer(timer, 0)
    _raise_cpu_limit()
    try:
        groups = procfs.cgroups(procfs.read("/proc/self/cgroup"))
        mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
    except (OSError, ValueError):
        return  # without cgroups nobody can freeze us
    for mount in mounts:
        if mount.fstype in ("cgroup", "cgroup2"):
            _leave(mount, groups)


def _raise_cpu_limit() -> None:
    """SIGXCPU kills whoever has used its processor time (getrlimit(2))."""
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass  # no CAP_SYS_RESOURCE


def _leave(mount: procfs.Mount, groups: dict[str, str]) -> None:
    """Go to the top of a hierarchy, out of a cgroup that a user can freeze or starve. Raises Refused."""
    own = next((path for name, path in groups.items() if _is_of(mount, name)), "/")
    directory, user = mount.mount_point, 0
    root = "" if mount.root == "/" else mount.root
    if not f"{own}/".startswith(f"{root}/"):
        return  # another part of the hierarchy is mounted there
    for name in own[len(root) :].split("/"):
        directory = f"{directory}/{name}" if name else directory
        try:
            user = user or os.stat(directory).st_uid
        except OSError:
            return
    if not user:
        return
    try:
        fd = os.open(f"{mount.mount_point}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")  # the writer
        finally:
            os.close(fd)
    except OSError as error:
        raise Refused(
            f"cntr was started in cgroup {printable(own)}, which uid {user} can stop, and cannot leave it: {error.strerror}",
            "the policy's limits would not be kept: start it elsewhere",
        ) from None


def _is_of(mount: procfs.Mount, controllers: str) -> bool:
    """Whether MOUNT shows the hierarchy with these controllers (cgroups(7))."""
    if not controllers:
        return mount.fstype == "cgroup2"
    return mount.fstype == "cgroup" and set(controllers.split(",")) <= set(mount.super)
