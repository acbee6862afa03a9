"""The ordered table of namespace kinds (namespaces(7)), and opening those of a process."""

from __future__ import annotations

import os

from cntr.linux import syscalls


class NamespaceKind:
    """One kind of namespace: its file under /proc/PID/ns and its clone flag."""

    __slots__ = ("flag", "name")

    def __init__(self, name: str, flag: int) -> None:
        """Keep the row."""
        self.name, self.flag = name, flag


# The order of joining. The mount namespace comes first, while the host's privileges are whole; the user namespace last,
# since entering it gives them up. The pid namespace takes effect for children only and is joined before the fork.
KINDS = (
    NamespaceKind("mnt", syscalls.CLONE_NEWNS),
    NamespaceKind("pid", syscalls.CLONE_NEWPID),
    NamespaceKind("net", syscalls.CLONE_NEWNET),
    NamespaceKind("ipc", syscalls.CLONE_NEWIPC),
    NamespaceKind("uts", syscalls.CLONE_NEWUTS),
    NamespaceKind("cgroup", syscalls.CLONE_NEWCGROUP),
    NamespaceKind("time", syscalls.CLONE_NEWTIME),
    NamespaceKind("user", syscalls.CLONE_NEWUSER),
)
FLAGS = {kind.name: kind.flag for kind in KINDS}


def identity(proc_fd: int, name: str) -> tuple[int, int] | None:
    """(device, inode) of a namespace of the process behind proc_fd; None where the kernel has no such kind.

    Raises PermissionError where the ptrace access check (ptrace(2)) refuses the caller.
    """
    try:
        found = os.stat(f"ns/{name}", dir_fd=proc_fd)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def open_differing(proc_fd: int, own_fd: int) -> dict[str, int]:
    """{kind: fd} of the namespaces of the process behind proc_fd that are not those of own_fd's.

    Only these are joined: setns(2) into one's own user namespace is EINVAL.
    """
    opened: dict[str, int] = {}
    try:
        for kind in KINDS:
            theirs = identity(proc_fd, kind.name)
            if theirs is not None and theirs != identity(own_fd, kind.name):
                opened[kind.name] = os.open(f"ns/{kind.name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def join(fds: dict[str, int], *names: str) -> None:
    """setns(2) into each named namespace that FDS has, in the order given. Raises OSError naming the kind."""
    for name in names:
        if name in fds:
            try:
                syscalls.setns(fds[name], FLAGS[name])
            except OSError as error:
                raise OSError(error.errno, error.strerror, f"{name} namespace") from None
