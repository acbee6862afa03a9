"""The session's two processes: the *monitor*, which owns the nest, and the *command*, which becomes the user's shell.

The monitor lives in the target's pid namespace: it assembles the nest with the host's privileges, starts the command, sheds them, passes
signals on, and ends with all that the command left behind: it is the subreaper (prctl(2)) of everything in the session, so nothing
escapes it, and the end of the orders pipe tells it that the supervisor was killed. Like everything after the fork it imports nothing.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import errno
import os
import select

from cntr.attach.channel import EXITED, FAILED, KILLED, NOTE, Channel
from cntr.attach.target import CAP_KILL, CAP_SYS_PTRACE
from cntr.linux import namespaces, syscalls

EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127


class Command:
    """What to run: argv, environment, working directory, and the pty's slave (-1 without a terminal).

    foreign: a program of the container's: it must not find the caller's terminal behind /dev/tty, where it could type (TIOCSTI).
    """

    __slots__ = ("argv", "directory", "environment", "foreign", "tty_fd")

    def __init__(
        self, argv: list[str], environment: dict[str, str], directory: str, tty_fd: int, *, foreign: bool = False
    ) -> None:
        """Keep the parts; argv[0] is looked for in environment["PATH"]."""
        self.argv, self.environment, self.directory, self.tty_fd = argv, environment, directory, tty_fd
        self.foreign = foreign


class Session:
    """Both processes' code; every object in it was made before the fork."""

    __slots__ = ("channel", "command", "enter", "identity", "proc_fd", "signal_fd", "steps")

    def __init__(self, enter: Entrance, identity: Identity, command: Command, channel: Channel) -> None:
        """enter: the nest, or the container's own root, with ``assemble()`` and ``steps``."""
        self.enter, self.identity, self.command, self.channel = enter, identity, command, channel
        self.steps, self.proc_fd, self.signal_fd = enter.steps, identity.proc_fd, -1

    def run(self) -> None:
        """Be the monitor, in a process just forked; never returns."""
        status = 1
        try:
            self.channel.keep_session()
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # our memory and exe are the host's
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            syscalls.set_process_name("cntr-monitor")
            if self.command.tty_fd >= 0 or self.command.foreign:
                os.setsid()  # the caller's terminal sends its signals to the supervisor alone
            self.steps.now = "join the container's"
            namespaces.join(self.identity.target.namespaces, "net", "ipc", "uts", "time")
            try:
                self.proc_fd = syscalls.new_filesystem("proc", {})  # of this pid namespace, seen by nobody else
            except OSError:
                pass  # its owner may not make one where the host's /proc is partly covered: the host's will do
            self.enter.assemble()
            command_pid = self._start()
            self._shed()
            status = self._monitor(command_pid)
        except OSError as error:
            self._failed(error)
        except BaseException as error:  # noqa: BLE001  nothing may be printed here: the terminal is the user's
            self.channel.report(FAILED, self.steps.now, "0", f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def _failed(self, error: OSError) -> None:
        path = error.filename if isinstance(error.filename, str) else ""
        self.channel.report(FAILED, self.steps.now, str(error.errno or 0), path)

    def _start(self) -> int:
        """Fork the command; returns its pid."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        self.signal_fd = syscalls.signalfd((signal.SIGCHLD,))
        pid = self.identity.doors.fork()
        if pid == 0:
            try:
                self._become_command()
            except OSError as error:
                self._failed(error)
            except BaseException as error:  # noqa: BLE001
                self.channel.report(FAILED, self.steps.now, "0", f"{type(error).__name__}: {error}")
            finally:
                os._exit(EXIT_NOT_EXECUTABLE)
        if self.command.tty_fd >= 0:
            os.close(self.command.tty_fd)
        return pid

    def _shed(self) -> None:
        """Give up what only the assembling needed: a container that may trace us (CAP_SYS_PTRACE) would gain it.

        Left are the command's own capabilities, CAP_KILL to end it, CAP_SYS_PTRACE to keep lesser containers out, and five fds, none
        of which leads to the host.
        """
        first = 3
        for kept in sorted((self.signal_fd, self.channel.orders_read, self.channel.reports_write, self.proc_fd)):
            if kept > first:
                syscalls.close_range(first, 0, kept - 1)
            first = kept + 1
        syscalls.close_range(first, 0)
        if not self.identity.privileged:
            self.identity.shed(CAP_KILL | CAP_SYS_PTRACE)

    def _become_command(self) -> None:
        """Take on the identity and exec. Raises OSError."""
        self.identity.assume(self.steps, lambda text: self.channel.report(NOTE, text))
        command = self.command
        self.steps.now = "set up the terminal"
        if command.tty_fd >= 0:
            os.setsid()
            syscalls.take_terminal(command.tty_fd)
            for fd in (0, 1, 2):
                os.dup2(command.tty_fd, fd)
        self.steps.now = "change to directory"
        os.chdir(command.directory)
        # The monitor's death ends the command; asked for last, since a change of credentials clears it.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and exec would pass that on
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        syscalls.close_range(3, syscalls.CLOSE_RANGE_CLOEXEC)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        self.steps.now = self.steps.run
        self._exec()

    def _exec(self) -> None:
        """execve(2) along PATH, as a shell looks a command up. Raises the most telling OSError."""
        name, environment = self.command.argv[0], self.command.environment
        candidates = [name] if "/" in name else [f"{d or '.'}/{name}" for d in environment.get("PATH", "").split(":")]
        denied = None
        for path in candidates:
            try:
                os.execve(path, self.command.argv, environment)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    denied = denied or OSError(error.errno, error.strerror, path)
        raise denied or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _monitor(self, command_pid: int) -> int:
        """Wait for the command, passing signals on; returns the exit status of the monitor, 0 when the command was reported."""
        poll = select.poll()
        poll.register(self.signal_fd, select.POLLIN)
        poll.register(self.channel.orders_read, select.POLLIN)
        try:
            while True:
                for fd, _ in poll.poll():
                    if fd == self.signal_fd:
                        os.read(fd, 4096)
                        status = _reap(command_pid)
                        if status is not None:
                            self._report_end(status)
                            return 0
                        continue
                    orders = os.read(fd, 64)
                    if not orders:  # the supervisor is gone
                        return 1
                    for number in orders:
                        os.kill(command_pid, number)
        finally:
            self._end_all()

    def _report_end(self, status: int) -> None:
        if os.WIFSIGNALED(status):
            self.channel.report(KILLED, str(os.WTERMSIG(status)))
        else:
            self.channel.report(EXITED, str(os.WEXITSTATUS(status)))

    def _end_all(self) -> None:
        """Kill what the session left behind: orphans come to us, round by round, until there are none."""
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return
            for pid in self._children():
                # A /proc/PID directory is a pidfd to the kernel, whichever pid namespace its number is from.
                try:
                    fd = os.open(pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc_fd)
                except OSError:
                    continue
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except OSError:
                    pass
                finally:
                    os.close(fd)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _children(self) -> list[str]:
        """Our children's names in /proc (proc(5): /proc/PID/task/TID/children)."""
        fd = os.open("thread-self/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        try:
            return os.read(fd, 1 << 20).decode().split()
        finally:
            os.close(fd)


def _reap(command_pid: int) -> int | None:
    """Collect every child that has ended; the command's wait status if it is among them."""
    found = None
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == command_pid:
                found = status
    except ChildProcessError:
        pass
    return found


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from cntr.attach.identity import Identity
    from cntr.attach.nest import Steps

    class Entrance(Protocol):
        """How the session comes by its root: a nested mount namespace, or the container's own."""

        steps: Steps

        def assemble(self) -> None:
            """Enter it; raises OSError."""
