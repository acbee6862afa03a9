"""HTTP over a Unix socket, as the APIs of Docker, Podman, LXD and Incus speak it: one GET, one answer."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIMIT = 64 << 20  # bytes of one answer


def _socket_class() -> Any:
    # `import socket` costs 8-13 ms (selectors, enum, re by way of them); the C module under it 0.3 ms, and has
    # everything one request needs.
    try:
        import _socket  # type: ignore[import-not-found]
    except ImportError:
        import socket as _socket
    return _socket


def connect(path: str, deadline: float) -> Any:
    """A connected stream socket. Raises OSError (TimeoutError after DEADLINE, a time.monotonic() value)."""
    module = _socket_class()
    stream = module.socket(module.AF_UNIX, module.SOCK_STREAM)
    try:
        stream.settimeout(max(0.01, deadline - time.monotonic()))
        stream.connect(path)
    except BaseException:
        stream.close()
        raise
    return stream


def peer_pid(stream: Any) -> int:
    """The pid of who listens (SO_PEERCRED, unix(7)); 0 for a process in a pid namespace that is not ours or below it."""
    module = _socket_class()
    return int.from_bytes(stream.getsockopt(module.SOL_SOCKET, module.SO_PEERCRED, 12)[:4], "little")


def get(stream: Any, path: str, deadline: float) -> tuple[int, str]:
    """(status, body) of ``GET path``; the connection is used up. Raises OSError, ValueError.

    HTTP/1.0 on purpose: the server neither chunks nor keeps the connection, so the answer ends where the stream ends.
    """
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
    """NAME as one component of a URL path: everything but RFC 3986's unreserved characters percent-encoded."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in os.fsencode(name))
