"""Ends what a session leaves behind: processes are found by the nested mount namespace and killed by pidfd."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os

from cntr.linux import procfs

NOTHING = (0, 0)
REAPER = "cntr-reaper"  # its name in /proc (launcher.py)
ALL_SIGNALS = 0x7FFBFEFF  # 1 to 31 without SIGKILL and SIGSTOP, as a mask in /proc/PID/status


def mount_namespace(proc_fd: int, pid: str = "self") -> tuple[int, int]:
    """Return (device, inode) of a process's mount namespace; NOTHING if it is gone or hidden. proc_fd: the host's
    /proc.
    """
    try:
        status = os.stat(f"{pid}/ns/mnt", dir_fd=proc_fd)
    except OSError:
        return NOTHING
    return status.st_dev, status.st_ino


def in_namespace(proc_fd: int, namespace: tuple[int, int]) -> list[str]:
    """The pids of the processes in a mount namespace, without the caller's."""
    own = str(os.getpid())
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    return [name for name in names if name.isdecimal() and name != own and mount_namespace(proc_fd, name) == namespace]


def descendants(proc_fd: int, pid: int) -> list[str]:
    """The pids of all descendants of a process (proc(5): /proc/PID/task/TID/children)."""
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


def is_deaf(proc_fd: int, pid: str, numbers: tuple[int, ...]) -> bool:
    """Whether a process leaves one of these signals pending without blocking it.

    Then it is stopped, frozen, traced, or waits for something that never answers; or it has ended,
    and its parent does not collect it. A process that blocks all signals has not run its program
    yet (launcher.py): there, blocked signals count, too.
    """
    try:
        fields = procfs.status(procfs.read(f"{pid}/status", proc_fd))
    except OSError:
        return False
    pending, blocked = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16), int(fields["SigBlk"], 16)
    if blocked & ALL_SIGNALS != ALL_SIGNALS:
        pending &= ~blocked
    return fields["State"][0] == "Z" or any(pending >> number - 1 & 1 for number in numbers)


def is_stopped(proc_fd: int, pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP for example (proc(5))."""
    try:
        fd = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        try:
            return os.read(fd, 1024).rpartition(b") ")[2][:1] == b"T"
        finally:
            os.close(fd)
    except OSError:
        return False


def kill(proc_fd: int, pid: str, number: int = signal.SIGKILL) -> None:
    """Signal a process by its /proc directory, which the kernel accepts as a pidfd. A process that has gone is
    ignored.
    """
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
    """The pids of processes that sessions of a pid namespace left behind: those marked as a session's, with no
    reaper above.

    A process with CAP_SYS_ADMIN may have moved to another mount namespace, which then no longer identifies it.
    guard: the capabilities that no process of a session can drop (guard.py). They are in its ambient set, which is
    rare for other processes.
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
            if fields["State"][0] in "ZX":
                continue  # it has ended; its parent may never collect it
            if int(fields["CapAmb"], 16) & guard and fields.get("NoNewPrivs") == "1" and fields.get("Seccomp") == "2":
                found.append(pid)
        except (OSError, KeyError, ValueError):
            continue  # it has ended
    return [pid for pid in found if not _has_reaper(pid, parents, names)]


def _has_reaper(pid: str, parents: dict[str, str], names: dict[str, str]) -> bool:
    """Whether a process has a living session's reaper above it: one whose parent, the monitor, is outside the pid
    namespace.
    """
    for _ in parents:
        above = parents.get(pid, "0")
        if above not in parents:
            return names.get(pid) == REAPER
        pid = above
    return False


def end(proc_fd: int, namespace: tuple[int, int]) -> int:
    """Kill every process in a mount namespace; return how many there were."""
    found = in_namespace(proc_fd, namespace) if namespace != NOTHING else []
    for pid in found:
        kill(proc_fd, pid)
    return len(found)
