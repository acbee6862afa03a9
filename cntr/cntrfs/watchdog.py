"""Ends a FUSE connection whose server hangs: a client of it is in D state, and not even SIGKILL ends it.

The kernel's control filesystem (fusectl) tells how many requests wait, and ends the connection on a write to ``abort``.
It is mounted detached, so nobody else sees it. Where mounting it is refused, killing the server has the same effect.

A slow server does not hang. Requests it takes and answers are progress, and so is each step of a worker's long
operation. A serving thread inside a system call waits for a disk, as the client would without CntrFS. A server hangs
only if it makes no progress and the kernel is not working for it.
"""

from __future__ import annotations

import os
import time

from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.heartbeat import Heartbeat


_LOOKS, _LOOK_AGAIN = 10, 0.02  # number of samples; seconds between them
#: Where a thread sleeps that waits for another thread, for a request or for time: the kernel is not working for it.
_IDLE = (b"futex", b"fuse_dev", b"do_poll", b"poll_sched", b"do_sys_poll", b"ep_poll", b"do_epoll", b"do_select",
         b"hrtimer_nanosleep", b"do_nanosleep", b"do_sigtimedwait", b"sigsuspend", b"do_wait", b"pipe_read",
         b"anon_pipe_read", b"unix_stream", b"io_cqring", b"__io_cqring", b"eventfd", b"do_signal_stop", b"ptrace_stop")  # fmt: skip
_FUSE_CLIENT = (b"request_wait_answer", b"__fuse_request", b"fuse_simple_request", b"__fuse_simple_request")


class Watchdog:
    """Watches one connection from outside the server; never touches the mounted tree."""

    def __init__(self, mountpoint: str, heartbeat: Heartbeat, hang_timeout: float, device: int = 0) -> None:
        """Find the connection that is mounted at MOUNTPOINT now. hang_timeout: seconds, 0 for never.

        device: the connection's device number, if it is mounted in another mount namespace.
        """
        self.manager_pid = os.getpid()
        self.mountpoint = mountpoint
        self.heartbeat = heartbeat
        self.hang_timeout = hang_timeout
        self.device = device or find_device(mountpoint)
        self.control = open_control(self.device)
        self._progress = (0, 0, 0)
        self._since = time.monotonic()

    def is_mounted(self) -> bool:
        """Whether our filesystem is still mounted there. Reads mountinfo: stat(2) would ask the server.

        The device number alone does not tell: it is reused as soon as the mount is gone. The control directory
        disappears with the connection, before the number can be reused.
        """
        if self.device == 0 or not mountpoints_of(self.device):
            return False
        return self.control < 0 or _has_entries(self.control)

    def waiting(self) -> int:
        """Number of requests the kernel has sent or queued that are not answered; 0 if unknown."""
        return _waiting_of(self.control, ".")

    def hangs(self, pid: int) -> bool:
        """Whether the server PID has made no progress for hang_timeout while requests wait, and the kernel is not
        working for it.

        Requests parked on purpose (waiting for a lock, a worker's system call) do not count. A stopped server gets a
        tenth of the time, and parked requests do not excuse it.
        """
        taken, answered, parked, steps = self.heartbeat.read()
        now = time.monotonic()
        if self.control < 0 or not self.hang_timeout or (taken, answered, steps) != self._progress:
            self._progress, self._since = (taken, answered, steps), now
            return False
        stopped = is_stopped(pid)
        if self.waiting() <= (0 if stopped else parked):
            self._since = now
            return False
        if now - self._since <= (self.hang_timeout / 10 if stopped else self.hang_timeout):
            return False
        if not stopped and self.is_kept_by_the_kernel(pid):
            self._since = now
            return False
        return True

    def is_kept_by_the_kernel(self, pid: int) -> bool:
        """Whether the serving thread (PID's first, or the one it names) is inside a system call, in any of several
        samples.
        """
        thread = self.heartbeat.serving_thread or pid
        first = _times(pid, thread)
        for _ in range(_LOOKS):
            state, place = _state(pid, thread), _wait_channel(pid, thread)
            if state == b"R":
                if _was_in_the_kernel(first, _times(pid, thread)):
                    return True
            elif place.startswith(_FUSE_CLIENT):
                if self._others_are_asked():
                    return True
            elif state == b"D" or (state == b"S" and place not in (b"", b"0") and not place.startswith(_IDLE)):
                return True
            time.sleep(_LOOK_AGAIN)
        return False

    def _others_are_asked(self) -> bool:
        """The serving thread waits for a FUSE server: whether another server has a request to answer, or it waits for
        itself.
        """
        try:
            connections = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.control)
        except OSError:
            return True
        try:
            names = [name for name in os.listdir(connections) if name != str(os.minor(self.device))]
            return any(_waiting_of(connections, name) > 0 for name in names)
        finally:
            os.close(connections)

    def abort(self) -> None:
        """Abort the connection: every blocked call returns with an error."""
        if self.control < 0:
            return
        try:
            fd = os.open("abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.control)
        except OSError:
            return  # the connection is gone
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)


def _waiting_of(directory: int, connection: str) -> int:
    try:
        fd = os.open(f"{connection}/waiting", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def _has_entries(directory: int) -> bool:
    """Whether a directory of fusectl still exists, not only our fd of it."""
    try:
        os.stat("waiting", dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def find_device(mountpoint: str) -> int:
    """The device number of the topmost mount at MOUNTPOINT, by mountinfo; 0 if nothing is mounted there."""
    return next((mount.device for mount in reversed(_mounts()) if mount.mount_point == mountpoint), 0)


def mountpoints_of(device: int) -> list[str]:
    """Where the filesystem with this device number is mounted in our mount namespace."""
    return [mount.mount_point for mount in _mounts() if mount.device == device]


def _mounts() -> list[procfs.Mount]:
    return procfs.mountinfo(procfs.read("/proc/self/mountinfo"))


def open_control(device: int) -> int:
    """Open the fusectl directory of the connection with this device number; -1 if that is not possible."""
    try:
        tree = syscalls.new_filesystem("fusectl", {})
    except OSError:
        return -1
    try:
        return os.open(str(os.minor(device)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    except OSError:
        return -1
    finally:
        os.close(tree)


def _stat(pid: int, thread: int) -> list[bytes]:
    """The fields of /proc/PID/task/TID/stat from the state on; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/task/{thread}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _state(pid: int, thread: int) -> bytes:
    return (_stat(pid, thread) or [b"X"])[0]


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a tracer (state T or t in proc_pid_stat(5))."""
    return _state(pid, pid) in (b"T", b"t")


def _times(pid: int, thread: int) -> tuple[int, int]:
    """(user, system) time of the thread, in ticks."""
    fields = _stat(pid, thread)
    return (int(fields[11]), int(fields[12])) if fields else (0, 0)


def _was_in_the_kernel(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether a running thread spent most of its time in the kernel between two samples of its (user, system) times."""
    return after[1] - before[1] > after[0] - before[0]


def _wait_channel(pid: int, thread: int) -> bytes:
    """The kernel function that the thread sleeps in, /proc/PID/wchan; empty if it may not be read."""
    try:
        with open(f"/proc/{pid}/task/{thread}/wchan", "rb") as channel:
            return channel.read().strip()
    except OSError:
        return b""
