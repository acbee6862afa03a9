"""Ends a FUSE connection whose server hangs: a client in such a call is in D state, and not even SIGKILL ends it.

The kernel's control filesystem (fusectl) says how many requests wait, and ends the connection on a write to
``abort``. It is mounted detached, seen by nobody else. Where that is refused, killing the server does the same.

A slow server is not a dead one. What it takes and answers is progress, and so is each step of something long that a
worker does; and a serving thread that the kernel keeps in a system call waits for a disk, as the client would without
CntrFS. Only who neither moves nor has the kernel at work for it hangs.
"""

from __future__ import annotations

import os
import time

from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.heartbeat import Heartbeat


_LOOKS, _LOOK_AGAIN = 10, 0.02  # times, seconds
#: Where a thread sleeps that waits for another thread, for a request or for the time: nobody works for it.
_IDLE = (b"futex", b"fuse_dev", b"do_poll", b"poll_sched", b"do_sys_poll", b"ep_poll", b"do_epoll", b"do_select",
         b"hrtimer_nanosleep", b"do_nanosleep", b"do_sigtimedwait", b"sigsuspend", b"do_wait", b"pipe_read",
         b"anon_pipe_read", b"unix_stream", b"io_cqring", b"__io_cqring", b"eventfd", b"do_signal_stop", b"ptrace_stop")  # fmt: skip
_FUSE_CLIENT = (b"request_wait_answer", b"__fuse_request", b"fuse_simple_request", b"__fuse_simple_request")


class Watchdog:
    """Watches one connection from outside the server; never touches the mounted tree."""

    def __init__(self, mountpoint: str, heartbeat: Heartbeat, hang_timeout: float, device: int = 0) -> None:
        """Find the connection of what is mounted at MOUNTPOINT now; hang_timeout in seconds, 0 for never.

        device: the connection's, where it is mounted in another mount namespace.
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
        """Is our filesystem still what is mounted there? Asks mountinfo: a stat would ask the server.

        The device number alone does not tell: it is given to the next mount as soon as this one is gone. The control
        directory goes with the connection, before its number can be another's.
        """
        if self.device == 0 or find_device(self.mountpoint) != self.device:
            return False
        return self.control < 0 or _has_entries(self.control)

    def waiting(self) -> int:
        """Requests that the kernel has handed in and not got back; 0 where that can't be known."""
        return _waiting_of(self.control, ".")

    def hangs(self, pid: int) -> bool:
        """Has the server PID made no progress for hang_timeout while requests wait, and the kernel none for it?

        A request parked on purpose (a wait for a lock, a worker's system call) does not count. A stopped server is given
        a tenth of the time, and parks nothing.
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
        """Is the serving thread, PID's first or the one it names, in a system call that the kernel works on: in one of some looks?"""
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
        """The serving thread asks a FUSE server: is there another one with something to answer, or has it asked itself?"""
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
        """End the connection: every waiting call returns with an error."""
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
    """Whether a directory of fusectl is there still, and not only our fd of it."""
    try:
        os.stat("waiting", dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def find_device(mountpoint: str) -> int:
    """The device number of the topmost mount at MOUNTPOINT, by mountinfo; 0 when nothing is mounted there."""
    return next((mount.device for mount in reversed(_mounts()) if mount.mount_point == mountpoint), 0)


def mountpoints_of(device: int) -> list[str]:
    """Where the filesystem with this device number is mounted in our mount namespace."""
    return [mount.mount_point for mount in _mounts() if mount.device == device]


def _mounts() -> list[procfs.Mount]:
    return procfs.mountinfo(procfs.read("/proc/self/mountinfo"))


def open_control(device: int) -> int:
    """The fusectl directory of the connection with this device number; -1 when it is not to be had."""
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
    """The fields of /proc/PID/task/TID/stat from the state on; none when it is gone."""
    try:
        with open(f"/proc/{pid}/task/{thread}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _state(pid: int, thread: int) -> bytes:
    return (_stat(pid, thread) or [b"X"])[0]


def is_stopped(pid: int) -> bool:
    """Is the process stopped by a signal or a tracer (state T or t in proc_pid_stat(5))?"""
    return _state(pid, pid) in (b"T", b"t")


def _times(pid: int, thread: int) -> tuple[int, int]:
    """(user, system) time of the thread, in ticks."""
    fields = _stat(pid, thread)
    return (int(fields[11]), int(fields[12])) if fields else (0, 0)


def _was_in_the_kernel(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Of what a running thread computed between two looks at its (user, system) times: was most in the kernel?"""
    return after[1] - before[1] > after[0] - before[0]


def _wait_channel(pid: int, thread: int) -> bytes:
    """The kernel's function that the thread sleeps in, /proc/PID/wchan; empty where that may not be read."""
    try:
        with open(f"/proc/{pid}/task/{thread}/wchan", "rb") as channel:
            return channel.read().strip()
    except OSError:
        return b""
