"""Processes by number: the target ``pid:N``, and which process a number refers to.

A pid is reused; with its start time it refers to one process (proc_pid_stat(5)).
"""

from __future__ import annotations

import os

from cntr.engines.container import Container
from cntr.errors import TargetNotFound, printable
from cntr.linux import procfs

PF_KTHREAD = 0x00200000  # linux/sched.h
NS_GET_PARENT, NS_GET_OWNER_UID = 0xB702, 0xB704  # linux/nsfs.h, ioctl_ns(2)


def is_pid(name: str) -> bool:
    """Whether NAME may be a bare pid: pids end at 1 << 22 (proc_sys_kernel(5)), and container ids may be all digits
    too.
    """
    return name.isascii() and name.isdecimal() and len(name) < 8


def resolve(name: str) -> Container:
    """Find process NAME: N, or N@START for process N if it has that start time (proc_pid_stat(5), field 22).

    Raises TargetNotFound.
    """
    name, at, wanted = name.partition("@")
    if not is_pid(name) or not 0 < int(name) < 1 << 22:
        raise TargetNotFound(f"pid:{printable(name[:40])}: not a process id", "a pid is a number, as `ps` shows it")
    pid = int(name)
    try:
        stat = procfs.read(f"/proc/{pid}/stat")
    except OSError:
        from cntr.engines import processes

        raise TargetNotFound(f"pid {pid}: no such process", processes.elsewhere(pid)) from None
    fields = stat.rpartition(")")[2].split()
    if int(fields[6]) & PF_KTHREAD:
        raise TargetNotFound(
            f"pid {pid} is a kernel thread: it has no files and no container", "`cntr ps` lists containers"
        )
    start = start_time(pid)
    if not start:
        raise TargetNotFound(
            f"pid {pid} has ended: it is a zombie that its parent, pid {fields[1]}, has not waited for",
            "its container may have other processes; `cntr ps` lists containers with their pids",
        )
    if at and wanted != str(start):
        raise TargetNotFound(f"pid {pid} belongs to another process now", "the container has stopped")
    return Container("pid", str(pid), pid, owner=owner_of(pid), start_time=start)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, in clock ticks since boot; 0 if there is no such process, or no thread of it lives."""
    if pid <= 0:
        return 0
    try:
        stat = procfs.read(f"/proc/{pid}/stat")
    except OSError:
        return 0
    ended = stat.rpartition(")")[2].split()[0] in ("Z", "X") and procfs.living(pid) == f"/proc/{pid}"
    return 0 if ended else procfs.start_time(stat)


def owner_of(pid: int) -> int:
    """The owner of PID's user namespace; 0 if it is in ours, or that is not visible."""
    try:
        return namespace_owner(pid) or 0
    except OSError:
        return 0


def namespace_owner(pid: int) -> int | None:
    """The uid that made PID's user namespace, the outermost if nested; None if PID is in this process's own.

    The owner of a user namespace has every capability in it (user_namespaces(7)). Raises OSError.
    """
    own = os.stat("/proc/self/ns/user")
    theirs = f"{procfs.living(pid)}/ns/user"
    if os.path.samestat(os.stat(theirs), own):
        return None
    import fcntl  # a C module: 0.1 ms

    fd = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
    found = -1
    try:
        while not os.path.samestat(os.fstat(fd), own):
            buffer = bytearray(4)
            fcntl.ioctl(fd, NS_GET_OWNER_UID, buffer)
            found = int.from_bytes(buffer, "little")
            parent = fcntl.ioctl(fd, NS_GET_PARENT)  # EPERM: the parent is not below this process's own
            os.close(fd)
            fd = parent
        return found
    finally:
        os.close(fd)


def is_nobodys(pid: int, beside: str = "self") -> bool:
    """Whether PID is in no container: it shares mount, pid and user namespaces and root directory with this process, or
    with BESIDE.
    """
    try:
        return all(
            os.path.samestat(os.stat(f"/proc/{pid}/{name}"), os.stat(f"/proc/{beside}/{name}"))
            for name in ("ns/mnt", "ns/pid", "ns/user", "root")
        )
    except OSError:
        return False  # it is another user's
