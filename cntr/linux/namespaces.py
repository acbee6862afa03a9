"""The ordered table of namespace kinds (namespaces(7)), and functions that open those of a process."""

from __future__ import annotations

import os

from cntr.linux import syscalls


class NamespaceKind:
    """One kind of namespace: its file under /proc/PID/ns and its clone flag."""

    __slots__ = ("flag", "name")

    def __init__(self, name: str, flag: int) -> None:
        self.name, self.flag = name, flag


# The order of joining. The mount namespace comes first, while the host's privileges are complete. The user namespace
# comes last: entering it gives them up. The pid namespace applies to children only and is joined before the fork.
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
    """(device, inode) of a namespace of the process behind proc_fd; None if the kernel has no such kind.

    Raises PermissionError if the ptrace access check (ptrace(2)) refuses the caller.
    """
    try:
        found = os.stat(f"ns/{name}", dir_fd=proc_fd)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def open_differing(proc_fd: int, own_fd: int) -> dict[str, int]:
    """{kind: fd} of the namespaces of the process behind proc_fd that differ from those of own_fd's.

    Only these are joined: setns(2) into one's own user namespace fails with EINVAL.
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


def mapped(uid_map: str, gid_map: str) -> int:
    """An fd of a new user namespace with these maps (user_namespaces(7)), for idmapped mounts. No process stays in it.
    Raises OSError.

    The rows are (id in the file system, id in the mount, count).

    For a moment there is a process in the new user namespace. Whoever has its creator's uid may inspect it: for root,
    that is also the root of a container that shares this pid namespace. An undumpable process is protected: inspecting
    it takes CAP_SYS_PTRACE in the user namespace of its memory, which is ours.
    """
    # The /proc files of an undumpable process belong to root, so an ordinary user could not write its maps.
    before = syscalls.prctl(syscalls.PR_GET_DUMPABLE) if os.geteuid() == 0 else 0
    if before:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    try:
        child = syscalls.Idler(syscalls.CLONE_NEWUSER)
        try:
            for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
                fd = os.open(f"/proc/{child.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, text.encode())
                finally:
                    os.close(fd)
            return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            child.end()
    finally:
        if before == 1:  # prctl(2) does not accept 2
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


NO_FILES_ID = 0xFFFFFFFD  # no file has this id, the third-highest value; the highest, (uid_t)-1, means "no change"


def nobody() -> int:
    """An fd of a user namespace that maps one id, which no file has: an idmapped mount with it shows every file as
    nobody's. Raises OSError.
    """
    return mapped(f"{NO_FILES_ID} {NO_FILES_ID} 1", f"{NO_FILES_ID} {NO_FILES_ID} 1")


def owner(fd: int) -> int:
    """An fd of the user namespace that owns the namespace behind FD (ioctl_ns(2), NS_GET_USERNS). Raises OSError."""
    return syscalls.namespace_ioctl(fd, syscalls.NS_GET_USERNS)


def proc_of(pid_fd: int) -> int:
    """A detached mount of a new /proc of the pid namespace behind PID_FD (-1: our own). Raises OSError.

    Linux 6.17 takes the namespace as a mount option. Older kernels take that of the mounting process, so a child enters
    it: it holds nothing, is not dumpable, and ends at once.
    """
    if pid_fd < 0:
        return syscalls.new_filesystem("proc", {})
    try:
        return syscalls.new_filesystem("proc", {"pidns": pid_fd})
    except OSError as error:
        if error.errno != 22:  # EINVAL: no such option
            raise
    reading, writing = os.pipe2(os.O_CLOEXEC)
    done_read, done_write = os.pipe2(os.O_CLOEXEC)
    child = syscalls.fork()
    if child == 0:
        os.close(reading)
        os.close(done_write)
        _hold_proc(pid_fd, writing, done_read)
    os.close(writing)
    os.close(done_read)
    try:
        pid, fd, number = (int(word) for word in (os.read(reading, 64) or b"0 0 5").split())
        if number:
            raise OSError(number, os.strerror(number), "proc")
        pidfd = os.pidfd_open(pid)
        try:
            return syscalls.pidfd_getfd(pidfd, fd)
        finally:
            os.close(pidfd)
    finally:
        os.close(reading)
        os.close(done_write)
        os.waitpid(child, 0)


def _hold_proc(pid_fd: int, writing: int, done_read: int) -> None:
    """The two processes behind ``proc_of``: the first enters and forks, the second mounts and holds the mount until it
    is taken. Never returns.
    """
    try:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.setns(pid_fd, syscalls.CLONE_NEWPID)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        pid = syscalls.fork()
        if pid == 0:
            try:
                os.dup2(syscalls.new_filesystem("proc", {}), writing)
                os.write(ready_write, b"\0")
                os.read(done_read, 1)
            except OSError as error:
                os.write(ready_write, bytes([error.errno or 5]))
            finally:
                os._exit(0)
        os.write(writing, b"%d %d %d" % (pid, writing, (os.read(ready_read, 1) or b"\5")[0]))
        os.close(done_read)
        os.waitpid(pid, 0)
    except OSError as error:
        os.write(writing, b"0 0 %d" % (error.errno or 5))
    finally:
        os._exit(0)


def join(fds: dict[str, int], *names: str) -> None:
    """setns(2) into each namespace in FDS, by name, in the order given. Raises OSError naming the kind."""
    for name in names:
        if name in fds:
            try:
                syscalls.setns(fds[name], FLAGS[name])
            except OSError as error:
                raise OSError(error.errno, error.strerror, f"{name} namespace") from None


def is_below(fd: int, other: int) -> bool:
    """Whether the user namespace behind FD is a descendant of the one behind OTHER, not that one itself. Raises
    OSError.
    """
    wanted, found = os.fstat(other), -1
    try:
        while True:
            above = syscalls.namespace_ioctl(found if found >= 0 else fd, syscalls.NS_GET_PARENT)
            if found >= 0:
                os.close(found)
            found = above
            if os.path.samestat(os.fstat(found), wanted):
                return True
    except PermissionError:  # the caller may not see the next parent
        return False
    finally:
        if found >= 0:
            os.close(found)
