"""Which devices a session may open: those of the container's cgroup, even if the session stays outside that cgroup.

A container has device nodes in its image and may make others (Docker grants CAP_MKNOD by default). Only its cgroup
keeps it from opening them. A container program that ran outside the cgroup could open the machine's disks, and so
could a container that can trace a session's processes. A session cannot join the cgroup of a paused container, and
may be told to stay outside (``--no-cgroup``). Under version 1 it still joins the hierarchy with the devices
controller. Under version 2, which has one hierarchy, it gets a cgroup of its own below the caller's, with a program
that permits the devices every container has.
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
    """Open the cgroups to join, except frozen ones: joining one would freeze the session. Raises CntrError."""
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
        from cntr.attach.own_cgroup import OwnCgroup  # most sessions do not need it

        own = OwnCgroup(target.label)
        found = [*(membership for membership in found if membership.controllers), own.membership()]
    try:
        return cgroup.CgroupJoin(found, (own.parent_fd, own.name) if own else None)
    except PermissionError as error:
        if not target.as_owner:
            raise CntrError(f"{error.filename}: {error.strerror}", steps.CGROUP.hint) from None
        # An ordinary user may move processes only within a cgroup delegated to them (cgroups(7)), such as that of a
        # rootless engine.
        say(f"note: the session stays outside the container's cgroup: {error.strerror}: {error.filename}")
        return cgroup.CgroupJoin([])
    except OSError as error:  # EROFS: cntr itself runs in a container
        raise StepFailed(
            f"{target.label}: join the container's cgroup",
            error.errno or 0,
            printable(str(error.filename)),
            steps.CGROUP.advice(error.errno or 0),
        ) from None


def _are_restricted(theirs: str, ours: str, joined: list[cgroup.Membership]) -> bool:
    """Whether a process in these cgroups may open only the container's devices: by version 1's devices hierarchy if
    there is one, else by version 2.
    """
    target, caller = procfs.cgroups(theirs), procfs.cgroups(ours)
    key = next((controllers for controllers in target if "devices" in controllers.split(",")), "")
    return target.get(key) == caller.get(key) or any(membership.controllers == key for membership in joined)
