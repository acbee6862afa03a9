"""From the monitor to the command, in three processes. The container sees two of them, both with the session's
identity.

The *launcher* is still in the host's pid namespace. It joins the container's namespaces and cgroups, takes on the
whole identity, and forks the *reaper*, which is therefore born in the container's pid namespace and holds nothing
of the host's but two pipes. The container never sees a process with the host's ids or capabilities. The reaper is
the parent of the command and a subreaper (prctl(2)): it collects the command's orphans, which would otherwise
become zombies of an init that may not reap. The *command* closes every fd and runs the program.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _socket  # the module behind socket, likewise
import errno
import os
import select

from cntr.attach import remains, steps
from cntr.attach.channel import NOTE, Channel
from cntr.attach.identity import Identity
from cntr.attach.nest import OwnRoot
from cntr.linux import namespaces, process, procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_NOT_EXECUTABLE = 126
ENDED, STARTED = b"E", b"S"  # the reaper's frames: a byte, then a number of 8 bytes; see Frames
RECORD = 9
ALONE = 1 << 32  # flag in the frame of an ended command: no other process is left
POLL_SECONDS = 0.2  # how often to look for ended children if the container's filter forbids signalfd(2)


class Command:
    """What to run: argv, environment, working directory, standard streams, and the pty's slave (-1 without a
    terminal).

    directories: the first one that can be entered is used; one of them must work. streams: the fds for 0, 1 and 2;
    a value above 2 is moved there.
    """

    __slots__ = ("argv", "directories", "environment", "streams", "tty_fd")

    def __init__(
        self, argv: list[str], environment: dict[str, str], directories: list[str], streams: list[int], tty_fd: int
    ) -> None:
        """argv[0] is looked up in environment["PATH"]."""
        self.argv, self.environment, self.directories = argv, environment, directories
        self.streams, self.tty_fd = streams, tty_fd


class Launcher:
    """The code of the three processes; every object in it was made before the fork.

    root: for ``exec``, the container's root, which the launcher enters; life_read: a pipe that ends with the
    monitor; frames_write: the pipe to the monitor; null_fd: /dev/null, for the reaper's standard streams.
    """

    __slots__ = ("channel", "command", "frames_write", "identity", "life_read", "null_fd", "progress", "root")

    def __init__(
        self,
        identity: Identity,
        command: Command,
        channel: Channel,
        progress: steps.Progress,
        root: OwnRoot | None,
        *,
        life_read: int,
        frames_write: int,
        null_fd: int,
    ) -> None:
        self.identity, self.command, self.channel, self.progress, self.root = identity, command, channel, progress, root
        self.life_read, self.frames_write, self.null_fd = life_read, frames_write, null_fd

    def run(self) -> None:
        """Run the launcher; never returns."""
        self.channel.keep_launcher()
        self._guarded(self._launch, 1)

    def _guarded(self, work: Callable[[], None], status: int) -> None:
        try:
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001  nothing may be printed here: the terminal is the user's
            self.channel.report_failure(self.progress.now.name, error)
        finally:
            os._exit(status)

    def _launch(self) -> None:
        target = self.identity.target
        # The container can send the reaper signals from its birth on.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.progress.now = steps.NAMESPACES
        namespaces.join(target.namespaces, "net", "ipc", "uts", "time")
        if self.root:
            self.root.enter()
        elif "uts" in target.namespaces:
            self._check_hostname()
        self.progress.now = steps.NAMESPACES
        namespaces.join(target.namespaces, "pid")  # for children only (setns(2))
        self.identity.assume(self.progress, lambda text: self.channel.report(NOTE, text))
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        self._strip()
        self.progress.now = steps.FORK
        pid = syscalls.fork()
        if pid == 0:
            self._guarded(self._reap, 1)
        self._frame(STARTED, pid)

    def _check_hostname(self) -> None:
        """Stay out of a UTS namespace whose hostname is unsafe or can be changed by the container: prompts print it
        raw.
        """
        uts, name = self.identity.target.namespaces["uts"], os.uname().nodename
        safe = "".join(char for char in name if char.isascii() and (char.isalnum() or char in "-._"))
        owner = namespaces.owner(uts)
        try:
            pid = self.identity.target.namespaces.get("pid", -1)
            theirs = pid >= 0 and namespaces.is_below(owner, namespaces.owner(pid))
        finally:
            os.close(owner)
        if safe != name or theirs:
            syscalls.unshare(syscalls.CLONE_NEWUTS)
            _socket.sethostname(safe or "container")

    def _strip(self) -> None:
        """Drop what the container could see or take from a process about to be born in its pid namespace.

        Everybody can read a command line (proc(5)), including the values of ``-e``; a container with CAP_SYS_PTRACE
        could read the rest.
        """
        memory = process.command_line_memory(procfs.read("self/stat", self.identity.proc_fd))
        process.wipe_command_line(memory)
        streams = (self.command.tty_fd, *self.command.streams)
        syscalls.close_all_but(self.life_read, self.frames_write, self.channel.reports_write, self.null_fd, *streams)

    def _frame(self, kind: bytes, number: int) -> None:
        os.write(self.frames_write, kind + number.to_bytes(8, "little"))

    def _reap(self) -> None:
        """Run the reaper: fork the command, collect its orphans, and end with the last of them or with the monitor."""
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        syscalls.set_process_name(remains.REAPER)
        # Wait for the launcher to end: it counts against the container's limit on processes.
        if not os.read(self.life_read, 1):
            return
        command_pid = syscalls.fork()
        if command_pid == 0:
            self._guarded(self._become_command, EXIT_NOT_EXECUTABLE)
        self.identity.settle()
        for fd in (0, 1, 2):
            os.dup2(self.null_fd, fd)
        try:
            signal_fd = syscalls.signalfd((signal.SIGCHLD,))
        except OSError:
            signal_fd = -1
        syscalls.close_all_but(self.life_read, self.frames_write, signal_fd)
        os.chdir("/")
        self._wait(command_pid, signal_fd)

    def _wait(self, command_pid: int, signal_fd: int) -> None:
        poll = select.poll()
        poll.register(self.life_read, 0)
        if signal_fd >= 0:
            poll.register(signal_fd, select.POLLIN)
        while True:
            status, alone = reap(command_pid)
            if status is not None:
                self._frame(ENDED, status | (ALONE if alone else 0))
            if alone:
                return
            for fd, _ in poll.poll(None if signal_fd >= 0 else POLL_SECONDS * 1000):
                if fd == self.life_read:  # the monitor is gone, and nothing else would end these processes
                    end_children()
                    return
                os.read(fd, 4096)

    def _become_command(self) -> None:
        """Close what is not the program's, and exec. Raises OSError."""
        command = self.command
        self.progress.now = steps.TERMINAL
        os.setsid()
        if command.tty_fd >= 0:
            syscalls.take_terminal(command.tty_fd)
        for number, fd in enumerate(command.streams):
            if fd > 2:
                os.dup2(fd, number)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and exec would pass that on
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # any process in the container can send it
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Close-on-exec would be too late: execve(2) and chdir(2) follow links, and /proc/self/fd/N/.. would lead to
        # open directories.
        syscalls.close_all_but(self.channel.reports_write)
        self.progress.now = steps.OWN_DIRECTORY if self.root else steps.DIRECTORY
        for directory in command.directories:
            try:
                os.chdir(directory)
                if not os.getcwd().startswith("/"):  # "(unreachable)/…": a directory outside the root
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
                break
            except OSError:
                if directory == command.directories[-1]:
                    raise
        # The command dies with the reaper. Set last, because a change of credentials clears it.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self.identity.confine(self.progress)
        self.progress.now = steps.RUN_OWN if self.root else steps.RUN
        self._exec()

    def _exec(self) -> None:
        """execve(2) along PATH, as a shell does. Raises the most telling OSError."""
        name, environment = self.command.argv[0], self.command.environment
        candidates = [name] if "/" in name else [f"{d or '.'}/{name}" for d in environment.get("PATH", "").split(":")]
        if not name:  # Python would raise ValueError
            candidates, name = [], "''"
        denied = None
        for path in candidates if name else ():
            try:
                os.execve(path, self.command.argv, environment)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    # 0: a seccomp filter of the container's returned success without running anything.
                    number = error.errno or errno.EPERM
                    denied = denied or OSError(number, os.strerror(number), path)
        raise denied or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name or "''")


def reap(command_pid: int) -> tuple[int | None, bool]:
    """Collect every ended child. Return the command's wait status if it is among them, and whether no child is
    left.
    """
    found = None
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return found, False
            if pid == command_pid:
                found = status
    except ChildProcessError:
        return found, True


def end_children() -> None:
    """Kill our children until none is left: the orphans of a killed child become our children."""
    path = "/proc/thread-self/children"
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                children = os.read(fd, 1 << 16).decode("ascii").split()
            finally:
                os.close(fd)
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)
        except (OSError, ValueError):
            return  # it runs under another uid by now; its parent-death signal ends it
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
