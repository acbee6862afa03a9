"""The processes that serve ``cntr exec`` and ``cntr forward`` for a session, outside of it: started by the first client
(exec_server.py).
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _socket  # likewise
import os
import select

from cntr.attach import exec_handler
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.target import Target

    Options = tuple[list[str], list[str] | None]

HANDLERS = 64  # at once; each is a running `cntr exec`, or a client that has SILENCE_SECONDS to send a request


def run(listener: _socket.socket, target: Target, options: Options, nest: tuple[int, int], supervisor: int) -> None:
    """Be the server process; never returns. options: of the session, for its execs and for its
    forwards; nest: (device, inode) of its mount namespace.
    """
    try:
        _become_child(supervisor, listener.fileno(), target.pidfd)
        _serve(listener, target, options, nest)
    finally:
        os._exit(1)


def _serve(listener: _socket.socket, target: Target, options: Options, nest: tuple[int, int]) -> None:
    """Fork a handler for each connection. This process never touches a connection or its data."""
    syscalls.set_process_name("cntr-exec")
    os.setsid()  # the terminal's signals go to the session
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):  # the session's streams, whose readers wait for the last writer
        os.dup2(null, fd)
    handlers: dict[int, int] = {}
    while True:
        poll = select.poll()
        for fd in (*handlers, *([listener.fileno()] if len(handlers) < HANDLERS else [])):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll():
            if fd in handlers:
                os.waitpid(handlers.pop(fd), 0)
                os.close(fd)
                continue
            taken_read, taken_write = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                _handle(listener, target, options, nest, taken_write)
            os.close(taken_write)
            os.read(taken_read, 1)  # end of file: the handler has accepted the connection
            os.close(taken_read)
            handlers[os.pidfd_open(pid)] = pid


def _handle(
    listener: _socket.socket, target: Target, options: Options, nest: tuple[int, int], taken_write: int
) -> None:
    """Run one handler; never returns. It ends by _exit(2): closing an fd may block, the end of a process does
    not.
    """
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        connection = _socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]
        os.close(taken_write)
        if exec_handler.is_of(connection, nest):
            exec_handler.Handler(connection, target, options, nest).run()
    except (OSError, ValueError):
        pass  # the client sees end of file
    finally:
        os._exit(0)


def _become_child(parent: int, *kept: int) -> None:
    """Die with PARENT, and keep no fd of it except KEPT: end of file on its pipes must mean its death. Raises
    OSError.
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    syscalls.close_all_but(*kept)
