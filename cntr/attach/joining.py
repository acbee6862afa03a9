"""Which devices a session may open: those of the container's cgroup, also where the session stays outside of it.

A container has device nodes of its image, and may make others (CAP_MKNOD is among Docker's defaults): it can't open them, by its cgroup
alone. A program of the container's that ran outside of that would have the disks of the machine, and so would a container that may trace
a session's processes. A paused container's cgroup can't be joined, and one may be asked to stay outside (``--no-cgroup``): of version 1 the
hierarchy with the devices is joined all the same; in version 2, where it is all one, the session has a cgroup of its own below the
caller's, with a program that lets the devices through which every container has.
"""

from __future__ import annotations

import os

from cntr.attach import cgroup, memory, steps
from cntr.attach.target import Target
from cntr.errors import CntrError, StepFailed, printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.own_cgroup import OwnCgroup
    from cntr.attach.request import Request


def open_cgroups(request: Request, target: Target, traced: str, say: Callable[[str], None]) -> cgroup.CgroupJoin:
    """The cgroups to join; not those that are frozen: joining one freezes the joiner. Raises CntrError."""
    theirs, ours = procfs.read("cgroup", target.proc_fd), procfs.read("/proc/self/cgroup")
    found, unreachable = cgroup.memberships(theirs, ours, procfs.read("/proc/self/mountinfo"))
    frozen = any(membership.frozen for membership in found)
    if frozen and request.join_cgroup:
        say(f"note: {target.label} is paused: the session stays outside its cgroup")
    if frozen or not request.join_cgroup:
        devices = [membership for membership in found if "devices" in membership.controllers.split(",")]
        found = [membership for membership in devices if os.access(membership.directory, os.W_OK)]  # EROFS: a toolbox
    elif unreachable and request.verbose:
        say(f"note: cgroup not reachable from here: {', '.join(unreachable)}")
    if not request.own_root:
        found = memory.spared(found, target.label, say)
    own: OwnCgroup | None = None
    if (traced or not request.uses_host) and not target.as_owner and not _are_restricted(theirs, ours, found):
        from cntr.attach.own_cgroup import OwnCgroup  # which most sessions go without

        own = OwnCgroup(target.label)
        found = [*(membership for membership in found if membership.controllers), own.membership()]
    try:
        return cgroup.CgroupJoin(found, (own.parent_fd, own.name) if own else None)
    except PermissionError as error:
        if not target.as_owner:
            raise CntrError(f"{error.filename}: {error.strerror}", steps.CGROUP.hint) from None
        # A user may move processes only below a cgroup delegated to them (cgroups(7)); the engine of a rootless container may.
        say(f"note: the session stays outside the container's cgroup: {error.strerror}: {error.filename}")
        return cgroup.CgroupJoin([])
    except OSError as error:  # EROFS: cntr itself runs in a container
        raise StepFailed(
            f"{target.label}: join the container's cgroup",
            error.errno or 0,
            printable(str(error.filename)),
            steps.CGROUP.hint,
        ) from None


def _are_restricted(theirs: str, ours: str, joined: list[cgroup.Membership]) -> bool:
    """Whether who joins these may open no devices but the container's: version 1's where there is that hierarchy, else version 2's."""
    target, caller = procfs.cgroups(theirs), procfs.cgroups(ours)
    key = next((controllers for controllers in target if "devices" in controllers.split(",")), "")
    return target.get(key) == caller.get(key) or any(membership.controllers == key for membership in joined)
