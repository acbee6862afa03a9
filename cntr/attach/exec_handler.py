"""One client of the service behind ``cntr exec`` in a session, in a process of its own: who asks, what is run, how it ends."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _socket  # likewise
import os
import select
import sys

from cntr.attach import stdio
from cntr.attach.signals import FORWARDED
from cntr.linux import kernelfs, procfs, sockets, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.target import Target

FORWARD = "forward"  # in a question, in place of the number of variables
PACKET = 1 << 17  # bytes of a question
STREAMS = 3  # fds that come with it
SILENCE_SECONDS = 5.0


class Handler:
    """One client, and the ``cntr exec`` or ``cntr forward`` that was started for it."""

    def __init__(
        self,
        connection: _socket.socket,
        target: Target,
        options: tuple[list[str], list[str] | None],
        nest: tuple[int, int],
    ) -> None:
        """connection: of a process of the session; options: of its execs, and of its forwards, as ``ExecServer`` has them."""
        self.connection, self.target, self.nest = connection, target, nest
        self.flags, self.forward = options

    def run(self) -> None:
        """Take the question, start, wait. Raises OSError, ValueError."""
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        if not poll.poll(SILENCE_SECONDS * 1000):
            return
        data, fds = sockets.receive(self.connection, PACKET, STREAMS)
        if len(fds) != STREAMS or not all(_may_be_moved(fd, self.nest) for fd in fds):
            return
        line = self._line(data)
        pid = os.fork()
        if pid == 0:
            self._start(line, fds)
        pidfd = os.pidfd_open(pid)
        for fd in fds:
            os.close(fd)
        self._wait(pid, pidfd)

    def _line(self, data: bytes) -> list[str]:
        """The command line. Raises ValueError for what a client of ours does not send."""
        directory, count, *words = os.fsdecode(data).split("\0")
        if count == FORWARD:
            return self._forward_line(words)
        settings, command = words[: int(count)], words[int(count) :]
        # A name alone would take over a variable of this process, which is none of the session's.
        if int(count) < 0 or not command or not all("=" in setting for setting in settings) or not self.target.alive():
            raise ValueError
        options = [word for setting in settings for word in ("-e", setting)]
        return [
            "exec",
            f"pid:{self.target.pid}@{self.target.start_time}",
            *self.flags,
            "-w",
            directory,
            *options,
            "--",
            *command,
        ]

    def _forward_line(self, words: list[str]) -> list[str]:
        """Raises ValueError, also where the session has no such right."""
        from cntr.errors import UsageError
        from cntr.forward import spec

        if self.forward is None or not self.target.alive():
            raise ValueError
        try:
            line = spec.from_inside(words)
        except UsageError:
            raise ValueError from None
        return ["forward", f"pid:{self.target.pid}@{self.target.start_time}", *self.forward, *line]

    def _start(self, line: list[str], fds: list[int]) -> None:
        """Be that, with the client's streams; never returns."""
        try:
            from cntr.attach import readonly_interpreter

            argv = [sys.executable, "-IS", "-c", readonly_interpreter.code(), *line]
            os.setsid()  # the terminal behind the streams is the session's, and none of it is ours
            # A forward ends in order by itself, and has its record; an exec waits for a command.
            at_our_end = signal.SIGTERM if line[0] == FORWARD else signal.SIGKILL
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, at_our_end)
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(sys.executable, argv, os.environ)
        finally:
            os._exit(126)

    def _wait(self, pid: int, pidfd: int) -> None:
        """Pass signals on until it ends, then tell how. Raises OSError."""
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == pidfd:
                    _, status = os.waitpid(pid, 0)
                    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                    self.connection.send(bytes([code]), _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
                    return
                try:
                    numbers = self.connection.recv(64, _socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    numbers = b""
                if (
                    not numbers
                ):  # the client is gone; what it started ends in good order, and gives the session's terminal back
                    poll.unregister(fd)
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                for number in numbers:
                    if number in FORWARDED:
                        signal.pidfd_send_signal(pidfd, number)


def _may_be_moved(fd: int, nest: tuple[int, int]) -> bool:
    """Whether what is read from and written to FD may be so by the host's root, in place of the client. Raises OSError.

    Files of /proc and its like look at who reads, and not only at who opened; a unix socket tells its peer who wrote (SCM_CREDENTIALS),
    so the peer has to be of the session, too.
    """
    kind = stdio.kind_of(fd)
    if kind == stdio.FILE:
        return not kernelfs.holds(fd)
    if kind != stdio.SOCKET:
        return True
    peer = _socket.socket(fileno=os.dup(fd))
    if peer.family == _socket.AF_UNIX:
        return is_of(peer, nest)
    return peer.family in (_socket.AF_INET, _socket.AF_INET6)


def is_of(connection: _socket.socket, nest: tuple[int, int]) -> bool:
    """Whether the process that connected is in the mount namespace NEST, (device, inode). Raises OSError."""
    pid = sockets.Peer(connection).pid
    if pid <= 0:
        return False
    pidfd = sockets.peer_pidfd(connection)
    begun = _start_time(pid)
    found = os.stat(f"/proc/{pid}/ns/mnt")
    if pidfd < 0:
        same = begun == _start_time(pid)
    else:  # it has not ended: so /proc/PID was its own, and no later process' of that number
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        same = not poll.poll(0)
        os.close(pidfd)
    return same and (found.st_dev, found.st_ino) == nest


def _start_time(pid: int) -> int:
    return procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
