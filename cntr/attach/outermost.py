"""User namespaces created inside a container; a session stays outside of them.

The owner of a user namespace, and every process with the right capabilities in one around it, has all capabilities in it
(user_namespaces(7)). A process of the container may unshare one and be attached to: the others of its pid namespace would then
hold CAP_SYS_PTRACE over the session. The user namespace that owns the *pid* namespace is the one that those processes don't
stand above, so that one is entered; sandboxes with two levels (bwrap --dev, flatpak) are entered so too. What the process may do in
the inner one says nothing of the outer one: the session has its ids there, and none of its capabilities.
"""

from __future__ import annotations

import os

from cntr.attach.target import Target
from cntr.linux import namespaces


def stay_outside(target: Target) -> bool:
    """Have TARGET's session in the owner of its pid namespace, not in a user namespace below; whether there is one. Raises OSError."""
    if not {"pid", "user"} <= set(target.namespaces):
        return False
    owner = namespaces.owner(target.namespaces["pid"])
    try:
        if not namespaces.is_below(target.namespaces["user"], owner):
            return False
        own = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        if not own:
            from cntr.attach import id_maps  # which most sessions go without

            target.uid_map, target.gid_map = id_maps.of(owner)
        os.close(target.namespaces.pop("user"))
        if not own:
            target.namespaces["user"] = os.dup(owner)
    finally:
        os.close(owner)
    # What it has mounted over its /proc holds for tools that take /proc for the kernel's word; and what its engine mounted, no longer.
    target.partial_proc = True
    target.permitted = target.effective = target.inheritable = target.ambient = target.bounding = 0
    return True
