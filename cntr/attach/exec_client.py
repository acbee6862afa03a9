"""``cntr exec`` from inside a session: asked of the session's supervisor, see ``service``."""

from __future__ import annotations

import _socket  # the module behind socket, without its import of enum (5 ms)
import os
import select

from cntr.attach import exec_server
from cntr.attach.signals import FORWARDED, Watch
from cntr.errors import CntrError, printable

ON_THE_HOST = "run `cntr exec TARGET` on the host instead"


def run(argv: list[str], settings: list[str], directory: str) -> int:
    """Run the container's command; its exit status. Raises CntrError."""
    name = os.environ.get(exec_server.VARIABLE, "")
    if not name:
        raise CntrError("cntr exec: this session has nobody to ask", ON_THE_HOST)
    # A variable named alone is the session's, which the supervisor does not have.
    settings = [s if "=" in s else f"{s}={os.environ[s]}" for s in settings if "=" in s or s in os.environ]
    watch = Watch()
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    streams = [_open_stream(fd) for fd in (0, 1, 2)]
    words = [directory, str(len(settings)), *settings, *argv]
    packet = os.fsencode("\0".join(words))
    if len(packet) > exec_server.PACKET:
        raise CntrError(
            "cntr exec: the command line is too long", f"at most {exec_server.PACKET >> 10} KiB from inside a session"
        )
    try:
        connection.connect(f"\0{name}")
        fds = b"".join(fd.to_bytes(4, "little" if _little() else "big") for fd in streams)
        connection.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        return _wait(connection, watch)
    except OSError as error:
        raise CntrError(
            f"ask the session's supervisor: {printable(error.strerror or str(error))}", ON_THE_HOST
        ) from None
    finally:
        connection.close()
        watch.close()


def _little() -> bool:
    import sys

    return sys.byteorder == "little"


def _open_stream(fd: int) -> int:
    """FD itself, /dev/null where the caller closed it."""
    try:
        os.fstat(fd)
    except OSError:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return fd


def _wait(connection: _socket.socket, watch: Watch) -> int:
    """Pass signals on until the exit status comes. Raises CntrError, OSError."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    poll.register(watch.fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == watch.fd:
                connection.send(bytes(number for number, _ in watch.read() if number in FORWARDED) or b"\0")
                continue
            status = connection.recv(1)
            if not status:
                raise CntrError("cntr exec: the supervisor refused, or ended", ON_THE_HOST)
            return status[0]
