"""unix(7): credentials of the peer, and file descriptors sent along."""

from __future__ import annotations

import _socket  # the module behind socket, without its import of enum (5 ms)
import errno
import os
import sys

from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SO_PEERPIDFD = 77  # asm-generic/socket.h, kernel 6.5
_INT = 4  # bytes


class Peer:
    """The process at the other end of a connection: the one that connected, or that listened.

    pid: in this pid namespace, 0 if it is not visible here; uid: in this user namespace.
    """

    __slots__ = ("pid", "uid")

    def __init__(self, connection: _socket.socket) -> None:
        """SO_PEERCRED. Raises OSError."""
        data = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 3 * _INT)  # struct ucred
        self.pid, self.uid = _numbers(data)[:2]


def peer_pidfd(connection: _socket.socket) -> int:
    """SO_PEERPIDFD: a pidfd of the process that connected; -1 if the kernel has none. Raises OSError (it has ended)."""
    try:
        return _numbers(connection.getsockopt(_socket.SOL_SOCKET, SO_PEERPIDFD, _INT))[0]
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return -1


def receive(connection: _socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive a packet of at most SIZE bytes and at most MOST fds, close-on-exec. Raises OSError."""
    data, ancillary, flags, _ = connection.recvmsg(size, _socket.CMSG_SPACE(most * _INT), _socket.MSG_CMSG_CLOEXEC)
    fds = []
    for level, kind, content in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds += _numbers(content)
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data, fds


def send(connection: _socket.socket, data: bytes | memoryview, fds: list[int]) -> int:
    """Send FDS with one packet, or with as much of DATA as a stream takes; return the number of bytes. Raises OSError."""
    content = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds)
    return connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, content)])


def fd_from_child(make: Callable[[], int], call: str, seconds: float | None = None) -> int:
    """Return the fd that MAKE opens in a child, which may enter namespaces to do so. Raises
    OSError: MAKE's errno, naming CALL.

    After SECONDS that is ETIMEDOUT. The child may be left behind: during a request to FUSE not even
    SIGKILL ends it.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    pid = syscalls.fork()
    if pid == 0:
        number = errno.EIO
        try:
            os.closerange(0, 3)  # the caller's: who reads them waits for every writer
            send(theirs, b"0", [make()])
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(min(number, 255))
    theirs.close()
    ours.settimeout(seconds)
    try:
        _, fds = receive(ours, 1, 1)
    except _socket.timeout:
        os.kill(pid, 9)
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), call) from None
    finally:
        ours.close()
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not fds:
        raise OSError(abs(number), os.strerror(abs(number)), call)
    return fds[0]


def _numbers(data: bytes) -> list[int]:
    return [
        int.from_bytes(data[at : at + _INT], sys.byteorder, signed=True)
        for at in range(0, len(data) // _INT * _INT, _INT)
    ]
