"""Parses forwards: ``[ADDR:]PORT[:[ADDR:]PORT]``, with ``/socket/path`` or ``@name`` for a Unix socket on either side."""

from __future__ import annotations

import _socket as socket
import os

from cntr.errors import UsageError, printable

LOCALHOST = ("127.0.0.1", "::1")
FORMS = "[ADDR:]PORT[:[ADDR:]PORT|:/socket/path|:@name][/udp]: 8080:80, 0.0.0.0:53:53/udp, 5432:/run/pg.sock, [::1]:80"
UNPRIVILEGED = 1024  # ip(7)
UNIX_LENGTH = 107  # bytes of sun_path without the terminating zero (unix(7))


class Endpoint:
    """One side of a forward: an address and a port, or a Unix socket. Without an address: 127.0.0.1, and ::1 for
    connecting.
    """

    __slots__ = ("address", "path", "port")

    def __init__(self, port: int = 0, address: str = "", path: str = "") -> None:
        """path: of a Unix socket; ``@name`` for an abstract one."""
        self.port, self.address, self.path = port, address, path

    def addresses(self) -> list[tuple[int, tuple[str, int] | bytes | str]]:
        """(family, address) of each address to try, as the socket functions take them."""
        if self.path:
            return [(socket.AF_UNIX, b"\0" + os.fsencode(self.path[1:]) if self.path[0] == "@" else self.path)]
        found = (self.address,) if self.address else LOCALHOST
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, (one, self.port)) for one in found]

    @property
    def is_file(self) -> bool:
        """Whether it is a socket with a path."""
        return self.path[:1] == "/"

    def text(self, host: str = LOCALHOST[0]) -> str:
        """As the user writes it; HOST is shown if there is no address."""
        if self.path:
            return f"{host}:{printable(self.path)}" if host not in LOCALHOST else printable(self.path)
        address = f"[{self.address}]" if ":" in self.address else self.address
        if host in LOCALHOST:
            return f"{address or host}:{self.port}"
        return f"{host}:{address}:{self.port}" if address else f"{host}:{self.port}"


class Forward:
    """listen: the socket that cntr makes; connect: where it leads. reverse: listen is in the container, connect on this
    machine.
    """

    __slots__ = ("connect", "listen", "reverse", "udp")

    def __init__(self, listen: Endpoint, connect: Endpoint, *, udp: bool = False, reverse: bool = False) -> None:
        self.listen, self.connect, self.udp, self.reverse = listen, connect, udp, reverse

    def texts(self, target: str) -> tuple[str, str]:
        """Both sides as the user writes them, with TARGET before the container's."""
        hosts = (target, LOCALHOST[0]) if self.reverse else (LOCALHOST[0], target)
        kind = "/udp" if self.udp else ""
        return self.listen.text(hosts[0]) + kind, self.connect.text(hosts[1]) + kind


def parse(word: str, *, reverse: bool = False) -> Forward:
    """Parse one forward. Raises UsageError."""
    rest, udp = word, False
    for suffix in ("/udp", "/tcp"):
        if word.endswith(suffix) and not _has_path(word):
            rest, udp = word[: -len(suffix)], suffix == "/udp"
    listen, rest = _endpoint(word, rest)
    if rest:
        connect, rest = _endpoint(word, rest[1:])
        if rest:
            raise _wrong(word, f"{rest[1:]!r} is too much")
    elif listen.path or not listen.port:
        raise _wrong(word, "what it leads to is missing")
    else:
        connect = Endpoint(listen.port)
    if not connect.path and not connect.port:
        raise _wrong(word, "only the port to listen on can be 0, for a free one")
    ours, theirs = (connect, listen) if reverse else (listen, connect)
    if theirs.path[:1] == ".":
        raise _wrong(word, "a path in the container begins with a slash")
    if ours.path[:1] == ".":
        ours.path = os.path.abspath(ours.path)
    return Forward(listen, connect, udp=udp, reverse=reverse)


def one_endpoint(word: str) -> Endpoint:
    """Parse the endpoint for stdin and stdout. Raises UsageError."""
    endpoint, rest = _endpoint(word, word)
    if rest or not (endpoint.path or endpoint.port) or endpoint.path[:1] == ".":
        raise _wrong(word, "one end is enough: PORT, ADDR:PORT, /socket/path, @name")
    return endpoint


def from_inside(words: list[str]) -> list[str]:
    """Convert a session's request to the arguments of ``cntr forward``: each word is ``L`` or ``R`` and a forward, or
    ``J`` for --json.

    On this machine a session reaches ports on the loopback only, on which any user could listen: files would be reached
    with root's rights. Raises UsageError.
    """
    line = []
    for word in words:
        kind, rest = word[:1], word[1:]
        if word == "J":
            line.append("--json")
            continue
        if kind not in ("L", "R"):
            raise _wrong(word, "it is neither L nor R")
        forward = parse(rest, reverse=kind == "R")
        ours = forward.connect if forward.reverse else forward.listen
        if ours.path or ours.address not in ("", *LOCALHOST) or (not forward.reverse and 0 < ours.port < UNPRIVILEGED):
            raise UsageError(
                f"{printable(rest)}: from inside a session only ports of this machine's 127.0.0.1 and ::1, from {UNPRIVILEGED} on",
                "any other: `cntr forward TARGET …` outside of it",
            )
        line += ["-R", rest] if forward.reverse else [rest]
    if not any(word != "--json" for word in line):
        raise UsageError("forward: no port", "`cntr forward 8080:80`")
    return line


def _has_path(word: str) -> bool:
    return word[0] in "/@." or any(mark in word for mark in (":/", ":@", ":."))


def _endpoint(word: str, text: str) -> tuple[Endpoint, str]:
    """Parse the endpoint at the start of TEXT; return it and the rest from its colon on."""
    if text[:1] in ("/", "@", "."):
        path, colon, rest = text.partition(":")
        if len(path.encode(errors="surrogateescape")) > UNIX_LENGTH or len(path) < 2 or "\0" in path:
            raise _wrong(word, f"a socket's name has 2 to {UNIX_LENGTH} bytes")
        return Endpoint(path=path), colon + rest
    address = ""
    if text[:1] == "[":
        address, bracket, text = text[1:].partition("]")
        if not bracket or text[:1] != ":":
            raise _wrong(word, "a port must follow the address")
        text = text[1:]
    head, colon, rest = text.partition(":")
    if not head.isdecimal() and not address and colon:
        address, (head, colon, rest) = head, rest.partition(":")
    if not (head.isascii() and head.isdecimal() and len(head) <= 5 and int(head) < 1 << 16):
        raise _wrong(word, f"{head!r} is no port")
    return Endpoint(int(head), _numeric(word, address)), colon + rest


def _numeric(word: str, address: str) -> str:
    """Return ADDRESS if it is numeric. Names are not resolved: it is unclear in which namespace."""
    known = {"localhost": "", "*": "0.0.0.0", "": ""}
    if address in known:
        return known[address]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, address))
        except (OSError, ValueError):
            continue
    raise _wrong(word, f"{address!r} is no numeric address")


def _wrong(word: str, why: str) -> UsageError:
    return UsageError(f"{printable(word)}: {printable(why)}", FORMS)
