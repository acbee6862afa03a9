"""Handles one ``cntr exec`` or ``cntr forward`` request from a session, in a process of its own."""

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

FORWARD = "forward"  # in a request, in place of the number of variables
PACKET = 1 << 17  # bytes of a request
STREAMS = 3  # fds sent with it
SILENCE_SECONDS = 5.0


class Handler:
    """One client, and the ``cntr exec`` or ``cntr forward`` started for it."""

    def __init__(
        self,
        connection: _socket.socket,
        target: Target,
        options: tuple[list[str], list[str] | None],
        nest: tuple[int, int],
    ) -> None:
        """connection: to the client in the session; options: for its execs and for its forwards, see
        ``ExecServer``.
        """
        self.connection, self.target, self.nest = connection, target, nest
        self.flags, self.forward = options

    def run(self) -> None:
        """Read the request, start the command, wait for it. Raises OSError, ValueError."""
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
        """Return the command line. Raises ValueError for a request that no cntr client sends."""
        directory, count, *words = os.fsdecode(data).split("\0")
        if count == FORWARD:
            return self._forward_line(words)
        settings, command = words[: int(count)], words[int(count) :]
        # A bare NAME would copy a variable of this process, which the session must not see.
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
        """Return the command line of a forward. Raises ValueError, also if the session may not forward."""
        from cntr.errors import UsageError
        from cntr.proxy import spec

        if self.forward is None or not self.target.alive():
            raise ValueError
        try:
            line = spec.from_inside(words)
        except UsageError:
            raise ValueError from None
        return ["forward", f"pid:{self.target.pid}@{self.target.start_time}", *self.forward, *line]

    def _start(self, line: list[str], fds: list[int]) -> None:
        """Run the command line with the client's streams; never returns."""
        try:
            from cntr.attach import readonly_interpreter

            argv = [sys.executable, "-IS", "-c", readonly_interpreter.code(), *line]
            os.setsid()  # the terminal behind the streams belongs to the session
            # A forward shuts down by itself and writes its record; an exec waits for its command.
            at_our_end = signal.SIGTERM if line[0] == FORWARD else signal.SIGKILL
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, at_our_end)
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(sys.executable, argv, os.environ)
        finally:
            os._exit(126)

    def _wait(self, pid: int, pidfd: int) -> None:
        """Pass signals on until the process ends, then send the status. Raises OSError."""
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
                # The client is gone: end the command in order, so that it restores the session's terminal.
                if not numbers:
                    poll.unregister(fd)
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                for number in numbers:
                    if number in FORWARDED:
                        signal.pidfd_send_signal(pidfd, number)


def _may_be_moved(fd: int, nest: tuple[int, int]) -> bool:
    """Whether the host's root may read and write FD on behalf of the client. Raises OSError.

    Files of /proc and the like check who reads, not only who opened. A unix socket tells its peer who wrote
    (SCM_CREDENTIALS), so its peer must belong to the session too.
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
    """Whether the connected process is in mount namespace NEST, (device, inode). Raises OSError."""
    pid = sockets.Peer(connection).pid
    if pid <= 0:
        return False
    pidfd = sockets.peer_pidfd(connection)
    begun = _start_time(pid)
    found = os.stat(f"/proc/{pid}/ns/mnt")
    if pidfd < 0:
        same = begun == _start_time(pid)
    else:  # it is still alive, so /proc/PID belonged to it and not to a later process with its number
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        same = not poll.poll(0)
        os.close(pidfd)
    return same and (found.st_dev, found.st_ino) == nest


def _start_time(pid: int) -> int:
    return procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
