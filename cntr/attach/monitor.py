"""The monitor: the session's process on the host's side that owns the nested mount namespace.

It stays outside the container's pid namespace, where no process of the container can stop, kill or trace it. It
assembles the nest with the host's privileges, forks the launcher into it, and passes signals on. At the end it
finds what the session left by its mount namespace and kills it, whatever its parent is. Like all code after the
fork it imports nothing.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import errno
import os
import select
import time

from cntr.attach import launcher, remains, steps
from cntr.attach.channel import DONE, EXITED, KILLED, LEFT, NEST, NOTE, Channel
from cntr.attach.identity import Identity
from cntr.attach.nest import Nest, OwnRoot
from cntr.attach.target import CAP_SYS_PTRACE
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.stdio import Stdio

PATIENCE_SECONDS = 5.0  # how long to wait for killed processes to go; a frozen or hung one takes longer
STEP_SECONDS = 0.01
LOOK_SECONDS = 1.0  # between checks whether the reaper was stopped
DEAF_SECONDS = 2.0  # seconds for a command that has been asked to end, but has not handled the signal
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Monitor:
    """The process forked by the supervisor. left_files: returns the paths of files left in the session's /tmp and
    home.
    """

    def __init__(
        self,
        nest: Nest | OwnRoot,
        identity: Identity,
        command: launcher.Command,
        channel: Channel,
        left_files: Callable[[], list[str]] | None,
        *,
        stdio: Stdio,
        null_fd: int,
    ) -> None:
        self.nest, self.identity, self.command, self.channel = nest, identity, command, channel
        self.progress, self.left_files, self.null_fd, self.reaper = nest.progress, left_files, null_fd, 0
        self.stdio, self.in_order = stdio, False
        self.asked_at = 0.0  # when the command was asked to end (monotonic seconds), 0 if it was not
        self.overdue = float("inf")  # when to end the session because the supervisor has not (monotonic seconds)
        self.early: list[int] = []  # signals for a command that the reaper has not forked yet

    def run(self) -> None:
        """Run the monitor; never returns."""
        status = 1
        try:
            self.channel.keep_session()
            self.stdio.keep_session()
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # our memory and exe are the host's
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)  # the launcher ends and leaves its reaper to us
            syscalls.set_process_name("cntr-monitor")
            mask = os.umask(0o022)  # the caller's would hide directories of the nest from a user who is not root
            self.identity.umask = mask if self.identity.umask is None else self.identity.umask
            os.setsid()  # the caller's terminal signals the supervisor alone, and nobody else may type into it
            for note in self.nest.assemble():
                self.channel.report(NOTE, note)
            is_nest = isinstance(self.nest, Nest)
            found = remains.mount_namespace(self.identity.proc_fd) if is_nest else remains.NOTHING
            self.channel.report(NEST, *map(str, found))  # before there is a process that the container could trace
            frames, life_write = self._start()
            status = self._monitor(frames) if frames >= 0 else 1
            os.close(life_write)
        except BaseException as error:  # noqa: BLE001  nothing may be printed here: the terminal is the user's
            self.channel.report_failure(self.progress.now.name, error)
        finally:
            os._exit(status)

    def _start(self) -> tuple[int, int]:
        """Fork the launcher. Return the pipe with the reaper's frames, and the pipe whose end tells the reaper that
        we died.
        """
        self.progress.now = steps.FORK
        life_read, life_write = os.pipe2(os.O_CLOEXEC)
        frames_read, frames_write = os.pipe2(os.O_CLOEXEC)
        root = self.nest if isinstance(self.nest, OwnRoot) else None
        below = launcher.Launcher(
            self.identity,
            self.command,
            self.channel,
            self.progress,
            root,
            life_read=life_read,
            frames_write=frames_write,
            null_fd=self.null_fd,
        )
        pid = self.identity.cgroups.fork()
        if pid == 0:
            os.close(life_write)
            os.close(frames_read)
            below.run()
        os.close(life_read)
        os.close(frames_write)
        for fd in (0, 1, 2):  # the command's streams: their readers wait for the last writer
            os.dup2(self.null_fd, fd)
        for fd in {fd for fd in (self.command.tty_fd, *self.command.streams) if fd > 2}:
            os.close(fd)
        if not self._await(pid):
            return -1, life_write
        try:
            os.write(life_write, b"\0")
        except BrokenPipeError:
            pass  # there is no reaper; the launcher has reported why
        return frames_read, life_write

    def _await(self, launcher_pid: int) -> bool:
        """Wait for the launcher; return whether it ended by itself. If the session has to end
        first, kill it: the container may have frozen the cgroup that it joined, or left it no
        memory.
        """
        pidfd, poll, asked = os.pidfd_open(launcher_pid), select.poll(), False
        for fd in (pidfd, self.channel.orders_read):
            poll.register(fd, select.POLLIN)
        while pidfd not in dict(poll.poll()):
            orders = os.read(self.channel.orders_read, 64)
            self.early += orders
            if orders and not set(orders) & set(ENDING):
                continue
            poll.unregister(self.channel.orders_read)
            if orders and poll.poll(DEAF_SECONDS * 1000):
                break
            asked = True
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not poll.poll(PATIENCE_SECONDS * 1000):
                os._exit(1)  # in a frozen cgroup of version 1 it dies only once thawed
        killed = os.WIFSIGNALED(os.waitpid(launcher_pid, 0)[1])
        if killed:
            for pid in remains.descendants(self.identity.proc_fd, os.getpid()):
                remains.kill(self.identity.proc_fd, pid)
            if not asked:
                self._reaper_lost()
        return not killed

    def _monitor(self, frames: int) -> int:
        """Wait for the reaper's end and pass signals on. Return the monitor's exit status, 0 if the command's was
        reported.
        """
        kind, self.reaper = self._frame(frames)
        if kind != launcher.STARTED:
            return 1  # the launcher has reported why
        # The pid comes from a process with the container's identity, so it is accepted only if it is our child.
        os.waitid(os.P_PID, self.reaper, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        pidfd = os.pidfd_open(self.reaper)
        poll = select.poll()
        for fd in (frames, self.channel.orders_read, pidfd):
            poll.register(fd, select.POLLIN)
        alone = False
        try:
            while True:
                ready = poll.poll((STEP_SECONDS if self.early else LOOK_SECONDS) * 1000)
                if self.early:
                    self._signals(b"")
                if (not ready and self._is_deaf()) or time.monotonic() > self.overdue:
                    return 1
                if not ready and remains.is_stopped(self.identity.proc_fd, self.reaper):
                    # The container can stop the processes it sees.
                    remains.kill(self.identity.proc_fd, str(self.reaper), signal.SIGCONT)
                for fd, _ in ready:
                    if fd == frames:
                        kind, ended = self._frame(frames)
                        if kind != launcher.ENDED:
                            return self._reaper_lost()
                        self.in_order = not self.identity.traced  # a tracer of the reaper can write its frames
                        self._report_end(ended & 0xFFFFFFFF)
                        alone = self.in_order and bool(ended & launcher.ALONE)
                        return 0
                    if fd == pidfd:
                        poll.unregister(pidfd)  # its last frame may still be unread
                        continue
                    orders = os.read(fd, 64)
                    if not orders:  # the supervisor is gone, or ends the session
                        return 1
                    self._signals(orders)
        finally:
            self._end_all(pidfd, alone)

    def _frame(self, fd: int) -> tuple[bytes, int]:
        data = os.read(fd, launcher.RECORD)  # written at once (pipe(7)), so this does not block
        return data[:1], int.from_bytes(data[1:], "little")

    def _signals(self, numbers: bytes) -> None:
        """Pass signals on to the command, which is the reaper's first child."""
        self.early += numbers
        if set(self.early) & set(ENDING) and not self.asked_at:
            self.asked_at = time.monotonic()
        children = remains.descendants(self.identity.proc_fd, self.reaper)
        remains.kill(self.identity.proc_fd, str(self.reaper), signal.SIGCONT)
        if children:
            for number in self.early:
                remains.kill(self.identity.proc_fd, children[0], number)
            self.early = []

    def _is_deaf(self) -> bool:
        """Whether the command was asked to end but cannot handle the signal, or has not even started."""
        if not self.asked_at:
            return False
        children = remains.descendants(self.identity.proc_fd, self.reaper)
        if children and not remains.is_deaf(self.identity.proc_fd, children[0], ENDING):
            self.asked_at = 0.0  # let it go on as it likes
            return False
        return time.monotonic() > self.asked_at + DEAF_SECONDS

    def _report_end(self, status: int) -> None:
        if os.WIFSIGNALED(status):
            self.channel.report(KILLED, str(os.WTERMSIG(status)))
        else:
            self.channel.report(EXITED, str(os.WEXITSTATUS(status)))

    def _reaper_lost(self) -> int:
        """Handle the death of a killed reaper, and of the command with it."""
        self.channel.report(KILLED, str(int(signal.SIGKILL)), "reaper")
        return 0

    def _orphans(self) -> list[str]:
        """Return the processes that the reaper left, wherever they are, unless it reported that the command has
        ended.
        """
        pid_fd = self.identity.target.namespaces.get("pid", -1)
        if self.in_order or pid_fd < 0 or not self.identity.guarded:
            return []
        status = os.fstat(pid_fd)
        return remains.orphans(self.identity.proc_fd, (status.st_dev, status.st_ino), CAP_SYS_PTRACE)

    def _end_all(self, reaper_fd: int, alone: bool) -> None:
        """End what the session left. alone: the reaper reported that nothing is left; nothing can escape it."""
        proc_fd = self.identity.proc_fd
        namespace = remains.mount_namespace(proc_fd) if isinstance(self.nest, Nest) else remains.NOTHING
        poll = select.poll()
        poll.register(reaper_fd, select.POLLIN)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not alone:
            below = remains.descendants(proc_fd, self.reaper) + self._orphans()
            for pid in below:
                remains.kill(proc_fd, pid)
            if not below or time.monotonic() > deadline - PATIENCE_SECONDS / 2:
                remains.kill(proc_fd, str(self.reaper))  # it has nothing left to reap, or was stopped
            if (not below and not remains.end(proc_fd, namespace)) or time.monotonic() > deadline:
                break
            poll.poll(STEP_SECONDS * 1000)
        if poll.poll(PATIENCE_SECONDS * 1000):
            try:
                os.waitpid(self.reaper, 0)
            except OSError as error:
                if error.errno != errno.ECHILD:
                    raise
        self.identity.cgroups.remove()
        if self.left_files and (files := self.left_files()):
            self.channel.report(LEFT, *files)
        self.channel.report(DONE)
