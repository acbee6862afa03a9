"""D-Bus for a session: the bus address, and the client side of authentication (D-Bus Specification, "Authentication
Protocol").

A client states its uid, and the bus compares it with the credentials of the socket. A session's uid differs from
that of the caller, whose process holds the connection to the bus. So the session's uid is replaced by the caller's;
everything else passes unchanged.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from cntr.proxy.passing import Opening

LONGEST = 1 << 14
EXTERNAL = b"AUTH EXTERNAL"


def path(address: str) -> str:
    """The socket path of a bus address, ``@name`` for an abstract socket; "" if no entry of the address is a Unix
    socket.
    """
    for one in address.split(";"):
        kind, _, rest = one.partition(":")
        pairs = dict(pair.partition("=")[::2] for pair in rest.split(","))
        for key, before in (("path", ""), ("abstract", "@")):
            if kind == "unix" and key in pairs:
                return before + unquote_to_bytes(pairs[key]).decode(errors="surrogateescape")
    return ""


class Authentication(Opening):
    """The client's lines up to BEGIN. uid: the uid that is sent to the bus in place of the client's."""

    def __init__(self, uid: int) -> None:
        self.uid = str(uid).encode().hex().encode()
        self.held, self.first, self.external = b"", True, False

    def feed(self, data: bytes) -> bytes:
        """Consume whole lines and return what to send to the bus. Raises ValueError."""
        self.held += data
        out = b""
        if self.first and self.held:
            if self.held[:1] != b"\0":
                raise ValueError
            self.first, self.held, out = False, self.held[1:], b"\0"
        while not self.done:
            line, end, rest = self.held.partition(b"\r\n")
            if not end:
                if len(line) > LONGEST:
                    raise ValueError
                return out
            self.held = rest
            out += self._line(line) + end
        return out + self.held

    def _line(self, line: bytes) -> bytes:
        if line == b"BEGIN":
            self.done = True
        elif line.startswith(EXTERNAL):
            self.external = True
            return EXTERNAL + b" " + self.uid if line != EXTERNAL else line
        elif line.startswith(b"AUTH"):
            self.external = False
        elif self.external and line.startswith(b"DATA "):
            return b"DATA " + self.uid
        return line
