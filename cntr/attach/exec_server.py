"""Serves ``cntr exec`` requests from a session, outside of it; and ``cntr forward``, if the session may forward.

A session cannot run the container's own programs safely. The container's root is at the session's base directory,
but a program that is merely chrooted there can leave it with CAP_SYS_CHROOT and find the tools' tree above. The
container's other processes could also leave through its /proc/PID/root: path_resolution(7) stops ``..`` at the root
of the *walking* process only. So the session asks a process outside. That process runs ``cntr exec`` on the host:
in the container's own mount namespace, with the container's own capabilities, on a terminal of its own.

The request is one packet on a unix(7) socket in the session's own tmpfs, which nobody else can reach. It holds the
working directory, variables, command, and the three standard streams. Then signal numbers go one way and the exit
status comes back. Each client has a *handler*, a process of its own: reading from a client may block, and closing
an fd that it passed may take long (SO_LINGER). Only that handler waits. The handler accepts only processes of the
session's mount namespace.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _socket  # likewise
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.target import Target

NAME = "exec.sock"
BACKLOG = 16  # connections without a handler


class ExecServer:
    """The supervisor's side: a socket until the first client connects, then a process, whose pidfd is polled."""

    __slots__ = ("flags", "forward", "listener", "pid", "pidfd", "target")

    def __init__(self, target: Target, flags: list[str], directory_fd: int, forward: list[str] | None = None) -> None:
        """Listen in a directory that only the session can see. Raises OSError.

        flags: options of the session that apply to its execs; forward: those for its forwards, None if it may not
        forward.
        """
        self.target, self.flags, self.forward, self.pid, self.pidfd = target, flags, forward, 0, -1
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self.listener = _socket.socket(_socket.AF_UNIX, kind)
        path = f"/proc/self/fd/{directory_fd}/{NAME}"
        try:
            self.listener.bind(path)
            os.chmod(path, 0o666)  # the directory admits the session only, under whichever uid
            self.listener.listen(BACKLOG)
        except BaseException:
            self.listener.close()
            raise

    def interests(self) -> list[int]:
        """The fds to poll for reading."""
        return [fd for fd in (self.pidfd if self.pid else self.listener.fileno(),) if fd >= 0]

    def ready(self, fd: int, nest: tuple[int, int]) -> bool:
        """Handle the event on FD; False if FD belongs to someone else. nest: (device, inode) of the session's mount
        namespace.
        """
        if fd < 0 or fd not in self.interests():
            return False
        if self.pid:
            self._reap()
        else:
            self._fork(nest)
        return True

    def _fork(self, nest: tuple[int, int]) -> None:
        """Start the server process, which takes over the listener and its pending connections."""
        supervisor = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:  # EAGAIN: a limit on processes; the client gets an error
            self._discard()
            return
        if self.pid == 0:
            try:
                from cntr.attach import exec_service  # most sessions never need it

                exec_service.run(self.listener, self.target, (self.flags, self.forward), nest, supervisor)
            finally:
                os._exit(1)
        self.pidfd = os.pidfd_open(self.pid)
        self.listener.close()

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1

    def _discard(self) -> None:
        """Close the listener in a child: a pending connection may hold fds whose closing blocks."""
        if self.listener.fileno() < 0:
            return
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        if not poll.poll(0):
            self.listener.close()
            return
        closed_read, closed_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:  # the last holder, which ends by _exit(2)
            os.close(closed_write)
            os.read(closed_read, 1)
            os._exit(0)
        self.listener.close()
        os.close(closed_write)
        os.close(closed_read)
        os.waitpid(pid, 0)

    def close(self) -> None:
        """Close everything. The processes started here die with their parent."""
        if self.pid:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._reap()
        self._discard()
