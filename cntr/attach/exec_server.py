"""``cntr exec`` asked for from inside a session, done from outside it.

A session cannot run the container's own programs safely by itself. It has the container's root at its base directory, but a program
that is merely chrooted there finds the tools' tree above it: with CAP_SYS_CHROOT it walks out, and to the container's other
processes its /proc/PID/root is a door whose ``..`` is the host's (path_resolution(7) stops at the *walker's* root). So the session
asks the supervisor, which runs ``cntr exec`` on the host: in the container's own mount namespace, with the container's own
capabilities, on a terminal of its own.

The question is one packet on an abstract unix(7) socket in the container's network namespace: working directory, variables, command,
and the three standard streams. Afterwards signal numbers go one way and the exit status the other. The container's processes can
connect too; only one that stands in the session's nested mount namespace is answered, which none of them can enter.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _socket  # likewise
import os
import sys

from cntr.attach.signals import FORWARDED
from cntr.linux import syscalls

VARIABLE = "CNTR_SERVICE"  # in a session: the socket's name
PACKET = 1 << 17
SO_PEERCRED = 17
WAITING = 8  # connections that have not said anything yet


class Job:
    """One ``cntr exec``: its client's connection and its process."""

    __slots__ = ("connection", "pid", "pidfd")

    def __init__(self, connection: _socket.socket, pid: int) -> None:
        """Raises OSError."""
        self.connection, self.pid, self.pidfd = connection, pid, os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        """Pass a signal on; one that has ended is left."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def reap(self) -> None:
        """Tell the client how it ended, and close."""
        _, status = os.waitpid(self.pid, 0)
        try:
            self.connection.send(
                bytes([128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)])
            )
        except OSError:
            pass  # it did not wait for it
        self.connection.close()
        os.close(self.pidfd)


class Service:
    """The supervisor's side. monitor: the session's process whose mount namespace a client must be in, set after the fork."""

    __slots__ = ("flags", "jobs", "listener", "monitor", "name", "target", "waiting")

    def __init__(self, target: Target, flags: list[str]) -> None:
        """Listen in the target's network namespace; flags: options of the session that hold for its execs. Raises OSError."""
        self.target, self.flags, self.monitor = target, flags, 0
        self.name = f"cntr-{os.urandom(16).hex()}"
        self.jobs: list[Job] = []
        self.waiting: list[_socket.socket] = []
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        if "net" in target.namespaces:
            self.listener.close()
            own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(target.namespaces["net"], syscalls.CLONE_NEWNET)
                self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
                syscalls.setns(own, syscalls.CLONE_NEWNET)
            finally:
                os.close(own)
        self.listener.bind(f"\0{self.name}")
        self.listener.listen(WAITING)
        self.listener.setblocking(False)

    def interests(self) -> list[int]:
        """The fds to poll for reading."""
        found = [connection.fileno() for connection in self.waiting]
        for job in self.jobs:
            found += [fd for fd in (job.connection.fileno(), job.pidfd) if fd >= 0]  # -1: a client that left
        if len(self.waiting) < WAITING:
            found.append(self.listener.fileno())
        return found

    def ready(self, fd: int) -> bool:
        """Do what FD is ready for; False where it is none of ours."""
        if fd == self.listener.fileno():
            try:
                self.waiting.append(_socket.socket(fileno=self.listener._accept()[0]))  # type: ignore[attr-defined]
            except OSError:
                pass  # it went away again
            return True
        for connection in self.waiting:
            if fd == connection.fileno():
                self.waiting.remove(connection)
                self._answer(connection)
                return True
        for job in self.jobs:
            if fd == job.pidfd:
                self.jobs.remove(job)
                job.reap()
                return True
            if fd == job.connection.fileno():
                self._listen_to(job)
                return True
        return False

    def _listen_to(self, job: Job) -> None:
        try:
            numbers = job.connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:  # the client is gone; what it started ends in good order, and gives the session's terminal back
            job.connection.close()
            job.signal(signal.SIGTERM)
        for number in numbers:
            if number in FORWARDED:
                job.signal(number)

    def _answer(self, connection: _socket.socket) -> None:
        """Take one question, from whoever asks, and start what it asks for."""
        fds: list[int] = []
        try:
            connection.setblocking(False)
            data, ancillary, *_ = connection.recvmsg(PACKET, _socket.CMSG_SPACE(3 * 4), _socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    fds += [
                        int.from_bytes(content[i : i + 4], sys.byteorder) for i in range(0, len(content) // 4 * 4, 4)
                    ]
            if len(fds) == 3 and self._is_ours(connection):
                self.jobs.append(Job(connection, self._start(data, fds)))
                return
        except (OSError, ValueError):
            pass
        finally:
            for fd in fds:
                os.close(fd)
        connection.close()

    def _is_ours(self, connection: _socket.socket) -> bool:
        pid = int.from_bytes(connection.getsockopt(_socket.SOL_SOCKET, SO_PEERCRED, 12)[:4], sys.byteorder)
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat(f"/proc/{self.monitor}/ns/mnt"))

    def _start(self, data: bytes, fds: list[int]) -> int:
        """Fork ``cntr exec``; its pid. Raises OSError, ValueError."""
        from cntr.attach import readonly_interpreter

        directory, count, *words = os.fsdecode(data).split("\0")
        settings, command = words[: int(count)], words[int(count) :]
        if not command or not self.target.alive():
            raise ValueError
        options = [word for setting in settings for word in ("-e", setting)]
        line = ["exec", f"pid:{self.target.pid}", *self.flags, "-w", directory, *options, "--", *command]
        argv = [sys.executable, "-IS", "-c", readonly_interpreter.code(), *line]
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(own, syscalls.CLONE_NEWPID)  # our children were to be the target's; this one is not
        finally:
            os.close(own)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()  # the terminal behind the standard streams is the session's, and none of it is ours
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                for number, fd in enumerate(fds):
                    os.dup2(fd, number)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                os.execve(sys.executable, argv, os.environ)
            finally:
                os._exit(126)
        return pid

    def close(self) -> None:
        """The session ends, and with it what was started for it."""
        for job in self.jobs:
            job.signal(signal.SIGKILL)  # its monitor ends the rest
            job.reap()
        for connection in self.waiting:
            connection.close()
        self.listener.close()
        self.jobs, self.waiting = [], []


TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.target import Target
