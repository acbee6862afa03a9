"""Ending what a session leaves behind: processes found by the nested mount namespace, killed by pidfd."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os

from cntr.linux import procfs

NOTHING = (0, 0)
REAPER = "cntr-reaper"  # its name in /proc (launcher.py)


def mount_namespace(proc_fd: int, pid: str = "self") -> tuple[int, int]:
    """(device, inode) of a process' mount namespace; NOTHING where it has gone or may not be seen. proc_fd: the host's /proc."""
    try:
        status = os.stat(f"{pid}/ns/mnt", dir_fd=proc_fd)
    except OSError:
        return NOTHING
    return status.st_dev, status.st_ino


def in_namespace(proc_fd: int, namespace: tuple[int, int]) -> list[str]:
    """The pids of the processes in a mount namespace, but for the caller."""
    own = str(os.getpid())
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    return [name for name in names if name.isdecimal() and name != own and mount_namespace(proc_fd, name) == namespace]


def descendants(proc_fd: int, pid: int) -> list[str]:
    """The pids of everything below a process (proc(5): /proc/PID/task/TID/children)."""
    found, pending = [], [str(pid)]
    while pending:
        parent = pending.pop()
        try:
            fd = os.open(f"{parent}/task/{parent}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
            try:
                children = os.read(fd, 1 << 20).decode("ascii").split()
            finally:
                os.close(fd)
        except OSError:
            continue
        found += children
        pending += children
    return found


def is_stopped(proc_fd: int, pid: int) -> bool:
    """Whether a process is in state T (proc(5)): SIGSTOP, which nobody can refuse."""
    try:
        fd = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        try:
            return os.read(fd, 1024).rpartition(b") ")[2][:1] == b"T"
        finally:
            os.close(fd)
    except OSError:
        return False


def kill(proc_fd: int, pid: str, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process by its /proc directory, which is a pidfd to the kernel; one that has gone is left."""
    try:
        fd = os.open(pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    except OSError:
        return
    try:
        signal.pidfd_send_signal(fd, number)
    except OSError:
        pass
    finally:
        os.close(fd)


def orphans(proc_fd: int, pid_namespace: tuple[int, int], guard: int) -> list[str]:
    """The pids of processes that sessions of a pid namespace have left to others: those with a session's marks, and no reaper above.

    One that may mount (CAP_SYS_ADMIN) goes into another mount namespace, and is known by that no more. guard: the capabilities that no
    process of a session can give up (guard.py); they are among its ambient ones, as is hardly ever the case for others.
    """
    found, parents, names = [], {}, {}
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        pids = [name for name in os.listdir(fd) if name.isdecimal()]
    finally:
        os.close(fd)
    for pid in pids:
        try:
            namespace = os.stat(f"{pid}/ns/pid", dir_fd=proc_fd)
            if (namespace.st_dev, namespace.st_ino) != pid_namespace:
                continue
            fields = procfs.status(procfs.read(f"{pid}/status", proc_fd))
            parents[pid], names[pid] = fields["PPid"], fields["Name"]
            if int(fields["CapAmb"], 16) & guard and fields.get("NoNewPrivs") == "1" and fields.get("Seccomp") == "2":
                found.append(pid)
        except (OSError, KeyError, ValueError):
            continue  # it has ended
    return [pid for pid in found if not _has_reaper(pid, parents, names)]


def _has_reaper(pid: str, parents: dict[str, str], names: dict[str, str]) -> bool:
    """Whether a living session's reaper is above a process: one whose own parent, the monitor, is outside of the pid namespace."""
    for _ in parents:
        above = parents.get(pid, "0")
        if above not in parents:
            return names.get(pid) == REAPER
        pid = above
    return False


def end(proc_fd: int, namespace: tuple[int, int]) -> int:
    """Kill every process in a mount namespace; how many there were."""
    found = in_namespace(proc_fd, namespace) if namespace != NOTHING else []
    for pid in found:
        kill(proc_fd, pid)
    return len(found)
