"""User namespaces created inside a container; a session stays outside of them.

The owner of a user namespace, and every process with the right capabilities in one around it, has all capabilities in it
(user_namespaces(7)). A process of the container may unshare one and be attached to: the others of its pid namespace would then
hold CAP_SYS_PTRACE over the session. The user namespace that owns the *pid* namespace is the one that those processes don't
stand above, so that one is entered; sandboxes with two levels (bwrap --dev, flatpak) are entered so too. What the process may do in
the inner one says nothing of the outer one: the session has its ids there, and none of its capabilities.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os

from cntr.attach.target import Target
from cntr.linux import namespaces, procfs, syscalls

IdMap = tuple[tuple[int, int, int], ...]


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
            target.uid_map, target.gid_map = _maps(owner)
        os.close(target.namespaces.pop("user"))
        if not own:
            target.namespaces["user"] = os.dup(owner)
    finally:
        os.close(owner)
    # What it has mounted over its /proc holds for tools that take /proc for the kernel's word; and what its engine mounted, no longer.
    target.partial_proc = True
    target.permitted = target.effective = target.inheritable = target.ambient = target.bounding = 0
    return True


def _maps(userns_fd: int) -> tuple[IdMap, IdMap]:
    """The id maps of a user namespace, in the caller's ids: those of a process that is put into it for a moment. Raises OSError."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = syscalls.fork()
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            syscalls.setns(userns_fd, syscalls.CLONE_NEWUSER)
            os.write(writing, b"\0")
            while True:
                signal.pause()
        except OSError as error:
            os.write(writing, bytes([error.errno or 1]))
        finally:
            os._exit(1)
    try:
        os.close(writing)
        number = (os.read(reading, 1) or b"\1")[0]
        if number:
            raise OSError(number, os.strerror(number), "user namespace of the container's pid namespace")
        uid_map, gid_map = (procfs.id_map(procfs.read(f"/proc/{pid}/{name}")) for name in ("uid_map", "gid_map"))
        return uid_map, gid_map
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
