"""HTTP over a Unix socket, for the APIs of Docker, Podman, LXD and Incus: one GET, one answer."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import ModuleType

    Stream = socket.socket

SOL_SOCKET = 1  # asm-generic/socket.h, as are the two below; SPARC, MIPS and PA-RISC differ and have no such engines
SO_PEERCRED = 17
LIMIT = 64 << 20  # bytes of one answer
TIMED_OUT = "timed out"  # the words of a socket; before Python 3.10 its error was a class of its own


def _module() -> ModuleType:
    # `import socket` takes 8-13 ms (selectors, enum, re); the C module takes 0.3 ms and has everything that one request
    # needs.
    try:
        import _socket
    except ImportError:
        import socket

        return socket
    return _socket


def connect(path: str, deadline: float) -> Stream:
    """A connected stream socket; PATH may be abstract. Raises OSError (TimeoutError after DEADLINE, time.monotonic())."""
    module = _module()
    stream: Stream = module.socket(module.AF_UNIX, module.SOCK_STREAM)
    try:
        stream.settimeout(max(0.01, deadline - time.monotonic()))
        stream.connect(path)
    except module.timeout:
        stream.close()
        raise TimeoutError(TIMED_OUT) from None
    except BaseException:
        stream.close()
        raise
    return stream


def connect_at_once(path: str) -> Stream:
    """The same, without waiting if the listener's backlog is full (EAGAIN): any user may listen on an abstract name.
    Raises OSError.
    """
    module = _module()
    stream: Stream = module.socket(module.AF_UNIX, module.SOCK_STREAM)
    try:
        stream.setblocking(False)
        stream.connect(path)
    except BaseException:
        stream.close()
        raise
    return stream


def peer(stream: Stream) -> tuple[int, int]:
    """(pid, uid) of the listener (SO_PEERCRED, unix(7)); pid 0 if its pid namespace is not ours or below."""
    credentials = stream.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little"), int.from_bytes(credentials[4:8], "little")


def get(stream: Stream, path: str, deadline: float) -> tuple[int, str]:
    """(status, body) of ``GET path``; the connection cannot be used again.

    Raises OSError (TimeoutError after DEADLINE), ValueError.
    HTTP/1.0: the server neither chunks nor keeps the connection open, so the answer ends with the stream.
    """
    try:
        return _get(stream, path, deadline)
    except _module().timeout:
        raise TimeoutError(TIMED_OUT) from None


def _get(stream: Stream, path: str, deadline: float) -> tuple[int, str]:
    stream.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("ascii"))
    chunks, size = [], 0
    while True:
        stream.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = stream.recv(1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
        if size > LIMIT:
            raise ValueError(f"an answer of more than {LIMIT} bytes")
    head, separator, body = b"".join(chunks).partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("not an HTTP answer")
    return int(words[1]), os.fsdecode(body)


def quote(name: str) -> str:
    """NAME as a component of a URL path: everything except RFC 3986's unreserved characters is percent-encoded."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in os.fsencode(name))
