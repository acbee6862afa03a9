"""Creates listening sockets, and finds out which process already has an address."""

from __future__ import annotations

import _socket as socket
import errno
import os
import stat

from cntr.errors import printable
from cntr.linux import procfs

BACKLOG = 4096  # bounded by net.core.somaxconn
_LISTENS, _UNCONNECTED = "0A", "07"  # net/tcp_states.h, column st
MOST_LINES = 64


def bind_port(made: socket.socket, address: tuple[str, int]) -> int:
    """Bind and listen; return the port, which the kernel chooses for 0. Raises OSError."""
    stream = made.type & 0xF == socket.SOCK_STREAM
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if stream:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    if stream:
        made.listen(BACKLOG)
    return int(made.getsockname()[1])


def bind_file(directory: int, name: str, mode: int) -> tuple[socket.socket, int]:
    """Return (a socket that listens at NAME in the directory, its inode). A dead socket there is replaced. Raises
    OSError.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    path = f"/proc/self/fd/{directory}/{name}"
    before = os.umask(0o777 & ~mode)
    try:
        try:
            made.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_dead(directory, name):
                raise
            os.unlink(name, dir_fd=directory)
            made.bind(path)
        made.listen(BACKLOG)
        return made, os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)


def _is_dead(directory: int, name: str) -> bool:
    """Whether NAME is a socket of ours with no listener. Raises OSError."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        return False
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        asking.connect(f"/proc/self/fd/{directory}/{name}")
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    finally:
        asking.close()
    return False


def remove(directory: int, name: str, inode: int) -> None:
    """Remove a socket that was made here; leave any other file of that name."""
    try:
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino == inode:
            os.unlink(name, dir_fd=directory)
    except OSError:
        pass


def table(directory: str, kinds: tuple[str, ...] = ("tcp", "tcp6", "udp", "udp6")) -> list[str]:
    """Lines ``kind address port inode`` for each listening socket, from DIRECTORY's tcp, udp, … (proc_pid_net(5)); at
    most MOST_LINES of a kind.
    """
    found = []
    for kind in kinds:
        try:
            lines = procfs.read(f"{directory}/{kind}", limit=1 << 18).splitlines()[1:]
        except OSError:
            continue
        wanted = _LISTENS if kind.startswith("tcp") else _UNCONNECTED
        rows = [fields for fields in (line.split() for line in lines) if len(fields) > 9 and fields[3] == wanted]
        for fields in rows[:MOST_LINES]:
            address, _, port = fields[1].partition(":")
            found.append(f"{kind} {_address(address)} {int(port, 16)} {fields[9]}")
    return found


def _address(digits: str) -> str:
    """Parse an address in the kernel's notation: 32-bit words in this machine's byte order."""
    import sys

    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def holder(port: int, *, udp: bool) -> str:
    """``name (pid N)`` of the process that has PORT on this machine, "" if unknown."""
    kinds = ("udp", "udp6") if udp else ("tcp", "tcp6")
    inodes = {f"socket:[{row.split()[3]}]" for row in table("/proc/self/net", kinds) if row.split()[2] == str(port)}
    if not inodes:
        return ""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                    return f"{printable(procfs.read(f'/proc/{pid}/comm').strip())} (pid {pid})"
        except OSError:
            continue  # another user's process, or it has ended
    return ""
