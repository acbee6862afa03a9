"""``cntr exec`` and ``cntr forward`` inside a session: asks the process outside, see ``exec_server``."""

from __future__ import annotations

import _socket  # the module behind socket, without its import of enum (5 ms)
import os
import select
import stat

from cntr.attach import exec_handler, exec_server
from cntr.attach.signals import FORWARDED, SignalFile
from cntr.errors import CntrError, printable
from cntr.linux import sockets

DIRECTORY = "/run/cntr"  # in the session's own tmpfs
ON_THE_HOST = "run `cntr exec TARGET` on the host instead"


def run(argv: list[str], settings: list[str], directory: str) -> int:
    """Run the container's command and return its exit status. Raises CntrError."""
    # A variable given by name only is taken from the session's environment, which the server cannot see.
    settings = [s if "=" in s else f"{s}={os.environ[s]}" for s in settings if "=" in s or s in os.environ]
    return _ask("exec", [directory, str(len(settings)), *settings, *argv])


def forward(words: list[str]) -> int:
    """Forward until a signal arrives. words: in the form of ``proxy.spec.from_inside``. Raises CntrError."""
    try:
        return _ask("forward", ["", exec_handler.FORWARD, *words])
    except NotAnswered:
        raise CntrError(
            "cntr forward: this session may not forward, or it has ended",
            "start the session with `cntr attach --forward`, or run `cntr forward` outside it",
        ) from None


class NotAnswered(CntrError):
    """The server closed the connection without an answer."""


def _ask(command: str, words: list[str]) -> int:
    """Have the server start a command outside; return its exit status. Raises CntrError."""
    packet = os.fsencode("\0".join(words))
    if len(packet) > exec_handler.PACKET:
        raise CntrError(
            f"cntr {command}: the command line is too long",
            f"at most {exec_handler.PACKET >> 10} KiB from inside a session",
        )
    _check_directory()
    watch = SignalFile()
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"{DIRECTORY}/{exec_server.NAME}")
        _check_server(connection)
        sockets.send(connection, packet, [_open_stream(fd) for fd in (0, 1, 2)])
        return _wait(connection, watch)
    except OSError as error:
        raise CntrError(
            f"cannot reach the session's supervisor: {printable(error.strerror or str(error))}", ON_THE_HOST
        ) from None
    finally:
        connection.close()
        watch.close()


def _check_directory() -> None:
    """Check that the directory belongs to the host's root (an unmapped uid here) and that nobody else may write to
    it. Raises CntrError.
    """
    try:
        info = os.lstat(DIRECTORY)
        os.lstat(f"{DIRECTORY}/{exec_server.NAME}")
    except OSError:
        raise CntrError("cntr exec: nobody serves this session", ON_THE_HOST) from None
    if not stat.S_ISDIR(info.st_mode) or info.st_mode & 0o022 or info.st_uid not in (0, _overflow_id()):
        raise CntrError(f"cntr exec: {DIRECTORY} is not the session's own", ON_THE_HOST)


def _check_server(connection: _socket.socket) -> None:
    """Check that the listener is the host's root, outside the session; nobody else gets the streams and the
    command. Raises CntrError.
    """
    peer = sockets.Peer(connection)
    outside = peer.pid == 0  # in no pid namespace that we can see
    if not outside:
        try:
            outside = not os.path.samestat(os.stat(f"/proc/{peer.pid}/ns/mnt"), os.stat("/proc/self/ns/mnt"))
        except OSError:
            outside = True  # we may not look at it: this session is in the host's pid namespace
    if not outside or peer.uid not in (0, _overflow_id()):
        raise CntrError("cntr exec: another process answers in the supervisor's place", ON_THE_HOST)


def _overflow_id() -> int:
    """The id that the kernel shows for ids this user namespace does not map."""
    with open("/proc/sys/kernel/overflowuid", "rb") as file:
        return int(file.read())


def _open_stream(fd: int) -> int:
    """Return FD itself, or /dev/null if the caller has closed it."""
    try:
        os.fstat(fd)
    except OSError:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return fd


def _wait(connection: _socket.socket, watch: SignalFile) -> int:
    """Pass signals on until the exit status arrives. Raises CntrError, OSError."""
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
                raise NotAnswered(
                    "cntr exec: the supervisor refused, or ended",
                    f"{ON_THE_HOST}; a file of /proc and a daemon's socket go through a pipe: `cat FILE | cntr exec …`",
                )
            return status[0]
