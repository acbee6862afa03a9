"""A caller without root first enters the user namespace of their own rootless container."""

from __future__ import annotations

import errno
import os
import time

from cntr.errors import CntrError, with_sudo
from cntr.linux import namespaces, procfs, syscalls

THREAD_SECONDS = 3.0


def enter(fds: dict[str, int]) -> None:
    """Enter the user namespace of the caller's own rootless container, with all capabilities in it. Raises CntrError, OSError.

    fds: of the target's namespaces; the one entered is removed. The owner of a user namespace may enter it
    (user_namespaces(7)). The ids below are then the container's, and the rest is the same walk as root's, in a private copy
    of the mount namespace: the user namespace must own a mount namespace to make mounts in it.
    """
    if "user" not in fds:
        raise PermissionError(errno.EPERM, "Operation not permitted")
    fd, uid = _owner(fds), os.geteuid()
    try:
        _wait_for_threads()
        syscalls.setns(fd, syscalls.CLONE_NEWUSER)
    finally:
        os.close(fd)
    rows = procfs.id_map(procfs.read("/proc/self/uid_map"))
    if not any(outside <= uid < outside + count for _, outside, count in rows):
        # LXC maps subordinate ids only: the owner has no id there and could not create a file
        # (EOVERFLOW).
        _be_its_root()
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def _owner(fds: dict[str, int]) -> int:
    """Return the user namespace to enter first: the target's, removed from FDS; or an ancestor that owns some of the others.

    bubblewrap and programs built on it (Flatpak) make the namespaces in one user namespace and run the program in a second
    one below. That one is joined at the end, as by root.
    """
    inner = fds["user"]
    for kind, fd in fds.items():
        if kind != "user":
            owner = namespaces.owner(fd)
            if os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user")):
                raise CntrError(
                    f"its {kind} namespace is none of its own user namespace's: it was started in one that root has made",
                    with_sudo("only root may enter that one"),
                )
            if not os.path.sameopenfile(owner, inner) and namespaces.is_below(inner, owner):
                return owner
            os.close(owner)
    del fds["user"]
    return inner


def _be_its_root() -> None:
    """Become root of the user namespace that was entered, with its capabilities. Raises OSError."""
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    try:
        os.setgroups([])
    except PermissionError:  # user_namespaces(7): "deny" in /proc/PID/setgroups
        pass
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _wait_for_threads() -> None:
    """Wait until this process has one thread: setns(2) into a user namespace requires it, and a late engine may still have one.

    Raises CntrError.
    """
    end = time.monotonic() + THREAD_SECONDS
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > end:
            raise CntrError(
                "an engine that was asked for this name does not answer, and its thread keeps cntr from entering a user namespace",
                "ENGINE:NAME asks only one",
            )
        time.sleep(0.002)
