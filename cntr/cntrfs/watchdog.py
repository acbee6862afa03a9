"""Ending a FUSE connection whose server hangs: a client in a hung call is in D state, and not even SIGKILL ends it.

The kernel's control filesystem (fusectl) says how many requests wait, and ends the connection on a write to
``abort``. It is mounted detached, seen by nobody else. Where that is refused, killing the server does the same.
"""

from __future__ import annotations

import os
import time

from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.heartbeat import Heartbeat


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
        try:
            fd = os.open("waiting", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.control)
        except OSError:
            return 0
        try:
            return int(os.read(fd, 32))
        finally:
            os.close(fd)

    def hangs(self, pid: int) -> bool:
        """Has the server PID neither taken nor answered a request for hang_timeout while some wait?

        A request parked on purpose (a wait for a lock) does not count. A stopped server is given a tenth of the time.
        """
        taken, answered, parked, steps = self.heartbeat.read()
        now = time.monotonic()
        if self.control < 0 or not self.hang_timeout or (taken, answered, steps) != self._progress:
            self._progress, self._since = (taken, answered, steps), now
            return False
        if self.waiting() <= parked:
            self._since = now
            return False
        return now - self._since > (self.hang_timeout / 10 if is_stopped(pid) else self.hang_timeout)

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


def _has_entries(directory: int) -> bool:
    """Whether a directory of fusectl is there still, and not only our fd of it."""
    try:
        os.stat("waiting", dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def find_device(mountpoint: str) -> int:
    """The device number of the topmost mount at MOUNTPOINT, by mountinfo; 0 when nothing is mounted there."""
    device = 0
    wanted = os.fsencode(mountpoint)
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split()
            path = fields[4]
            if b"\\" in path:
                path = path.decode("latin-1").encode("latin-1").decode("unicode_escape").encode("latin-1")
            if path == wanted:
                major, minor = fields[2].split(b":")
                device = os.makedev(int(major), int(minor))
    return device


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


def is_stopped(pid: int) -> bool:
    """Is the process stopped by a signal or a tracer (state T or t in /proc/PID/stat)?"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False
