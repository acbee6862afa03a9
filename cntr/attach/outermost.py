"""User namespaces created inside a container; a session stays outside of them.

The owner of a user namespace has all capabilities in it, and so has every process with capabilities in its parent
(user_namespaces(7)). A process of the container may unshare one and then be attached to: the other processes of its
pid namespace would hold CAP_SYS_PTRACE over the session. They hold nothing over the user namespace that owns the
*pid* namespace, so the session enters that one; sandboxes with two levels (bwrap --dev, flatpak) are entered the
same way. The capabilities that the process has in the inner namespace say nothing about the outer one: the session
has its ids there, and none of its capabilities.
"""

from __future__ import annotations

import os

from cntr.attach.target import Target
from cntr.linux import namespaces


def stay_outside(target: Target) -> bool:
    """Make TARGET's session use the owner of its pid namespace, not a user namespace below. Return whether there is
    one below. Raises OSError.
    """
    if not {"pid", "user"} <= set(target.namespaces):
        return False
    owner = namespaces.owner(target.namespaces["pid"])
    try:
        if not namespaces.is_below(target.namespaces["user"], owner):
            return False
        own = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        if not own:
            from cntr.attach import id_maps  # most sessions do not need it

            target.uid_map, target.gid_map = id_maps.of(owner)
        os.close(target.namespaces.pop("user"))
        if not own:
            target.namespaces["user"] = os.dup(owner)
    finally:
        os.close(owner)
    # The process may have mounted over its /proc, and tools take /proc for the kernel's word. The engine's own
    # mounts there are not used either.
    target.partial_proc = True
    target.permitted = target.effective = target.inheritable = target.ambient = target.bounding = 0
    return True
