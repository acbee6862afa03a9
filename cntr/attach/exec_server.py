"""Serves ``cntr exec`` requests from inside a session, on the outside; and ``cntr forward``, where the session may.

A session cannot run the container's own programs safely by itself. It has the container's root at its base directory, but a program
that is merely chrooted there finds the tools' tree above it: with CAP_SYS_CHROOT it walks out, and to the container's other
processes its /proc/PID/root is a door whose ``..`` is the host's (path_resolution(7) stops at the *walker's* root). So the session
asks a process outside, which runs ``cntr exec`` on the host: in the container's own mount namespace, with the container's own
capabilities, on a terminal of its own.

The question is one packet on a unix(7) socket in the session's own tmpfs, a directory that nobody else can come to: working directory,
variables, command, and the three standard streams. Afterwards signal numbers go one way and the exit status the other. Each client
has a *handler*, a process of its own: what a client sends may be waited for, and an fd it passes may take long to be closed
(SO_LINGER), but nobody waits for it but the handler. The handler looks who asks: only a process of the session's mount namespace.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _socket  # likewise
import os
import select

from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.target import Target

NAME = "exec.sock"
BACKLOG = 16  # connections that have no handler yet
HANDLERS = 64  # at once; each is a running `cntr exec`, or a client that has SILENCE_SECONDS to ask for one


class ExecServer:
    """The supervisor's side. Until somebody connects it is a socket and nothing more; then it is a process, whose pidfd is watched."""

    __slots__ = ("flags", "forward", "listener", "pid", "pidfd", "target")

    def __init__(self, target: Target, flags: list[str], directory_fd: int, forward: list[str] | None = None) -> None:
        """Listen in a directory that only the session will see; flags: options of the session that hold for its execs.

        forward: those for its forwards, None where it may have none. Raises OSError.
        """
        self.target, self.flags, self.forward, self.pid, self.pidfd = target, flags, forward, 0, -1
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self.listener = _socket.socket(_socket.AF_UNIX, kind)
        path = f"/proc/self/fd/{directory_fd}/{NAME}"
        try:
            self.listener.bind(path)
            os.chmod(path, 0o666)  # whoever gets to it is in the session, as whichever user
            self.listener.listen(BACKLOG)
        except BaseException:
            self.listener.close()
            raise

    def interests(self) -> list[int]:
        """The fds to poll for reading."""
        return [fd for fd in (self.pidfd if self.pid else self.listener.fileno(),) if fd >= 0]

    def ready(self, fd: int, nest: tuple[int, int]) -> bool:
        """Do what FD is ready for; False where it is none of ours. nest: (device, inode) of the session's mount namespace."""
        if fd < 0 or fd not in self.interests():
            return False
        if self.pid:
            self._reap()
        else:
            self._fork(nest)
        return True

    def _fork(self, nest: tuple[int, int]) -> None:
        """Start the process that serves; the listener is its own from now on, and so is what clients have sent already."""
        supervisor = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:  # EAGAIN: a limit on processes; the client is told that nobody answers
            self._discard()
            return
        if self.pid == 0:
            try:
                _become_child(supervisor, self.listener.fileno(), self.target.pidfd)
                self._serve(nest)
            finally:
                os._exit(1)
        self.pidfd = os.pidfd_open(self.pid)
        self.listener.close()

    def _serve(self, nest: tuple[int, int]) -> None:
        """Fork a handler for each connection; never touches a connection, nor what came over one."""
        syscalls.set_process_name("cntr-exec")
        os.setsid()  # the terminal's signals are for the session
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):  # the session's, whose readers wait for the last writer
            os.dup2(null, fd)
        handlers: dict[int, int] = {}
        while True:
            poll = select.poll()
            for fd in (*handlers, *([self.listener.fileno()] if len(handlers) < HANDLERS else [])):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd in handlers:
                    os.waitpid(handlers.pop(fd), 0)
                    os.close(fd)
                    continue
                taken_read, taken_write = os.pipe2(os.O_CLOEXEC)
                pid = os.fork()
                if pid == 0:
                    self._handle(taken_write, nest)
                os.close(taken_write)
                os.read(taken_read, 1)  # its end: the connection is the handler's
                os.close(taken_read)
                handlers[os.pidfd_open(pid)] = pid

    def _handle(self, taken_write: int, nest: tuple[int, int]) -> None:
        """Be a handler; never returns. It ends by _exit(2), since closing an fd may wait and the end of a process does not."""
        try:
            from cntr.attach import exec_handler  # which sessions that nobody asks in go without

            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            connection = _socket.socket(fileno=self.listener._accept()[0])  # type: ignore[attr-defined]
            os.close(taken_write)
            if exec_handler.is_of(connection, nest):
                options = (self.flags, self.forward)
                exec_handler.Handler(connection, self.target, options, nest).run()
        except (OSError, ValueError):
            pass  # the client sees the end of its connection
        finally:
            os._exit(0)

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1

    def _discard(self) -> None:
        """Close the listener; a connection that nobody has taken may hold fds that take long to be closed."""
        if self.listener.fileno() < 0:
            return
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        if not poll.poll(0):
            self.listener.close()
            return
        closed_read, closed_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:  # the last to hold it, who ends by _exit(2)
            os.close(closed_write)
            os.read(closed_read, 1)
            os._exit(0)
        self.listener.close()
        os.close(closed_write)
        os.close(closed_read)
        os.waitpid(pid, 0)

    def close(self) -> None:
        """The session ends, and with it what was started for it: each process here is killed when its parent ends."""
        if self.pid:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._reap()
        self._discard()


def _become_child(parent: int, *kept: int) -> None:
    """Die with PARENT, and hold none of its fds but KEPT: its pipes tell others of its end. Raises OSError."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    first = 3
    for fd in sorted(kept):
        if fd > first:
            syscalls.close_range(first, 0, fd - 1)
        first = max(first, fd + 1)
    syscalls.close_range(first, 0)
