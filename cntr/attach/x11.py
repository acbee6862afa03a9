"""X11 for a session: DISPLAY, the Xauthority file (Xau(3)), and a client's connection setup (X Window System
Protocol, chapter 8).

The session has a cookie of its own that is valid only at the session's socket. Outside, it is replaced by the real
one, as in ssh.
"""

from __future__ import annotations

import os
import struct

from cntr.proxy.passing import Opening

COOKIE_NAME = b"MIT-MAGIC-COOKIE-1"
COOKIE_LENGTH = 16
LONGEST_FILE = 1 << 18
FAMILY_LOCAL, FAMILY_WILD = 256, 65535  # X11/Xauth.h
FIRST_PORT = 6000
_HEAD = 12  # bytes: order, versions, lengths of the name and data of the authorization


def display(text: str) -> tuple[str, int, int]:
    """Parse a DISPLAY of this machine: (socket path, "" for TCP at 127.0.0.1; display; screen). Raises ValueError."""
    host, colon, rest = text.rpartition(":")
    number, _, screen = rest.partition(".")
    if not colon or not all(word.isascii() and word.isdecimal() and len(word) < 6 for word in (number, screen or "0")):
        raise ValueError
    if host in ("", "unix"):
        return f"/tmp/.X11-unix/X{int(number)}", int(number), int(screen or 0)
    if host in ("localhost", "127.0.0.1"):  # what ssh -X sets
        return "", int(number), int(screen or 0)
    raise ValueError


def cookie(data: bytes, number: int, hostname: str) -> bytes:
    """The cookie for a local display in an Xauthority file; b"" if there is none."""
    best: tuple[int, bytes] = (0, b"")
    while len(data) >= 2:
        family = int.from_bytes(data[:2], "big")
        words, data = _words(data[2:])
        if len(words) < 4:
            break
        address, shown, name, secret = words
        if name != COOKIE_NAME or len(secret) != COOKIE_LENGTH or shown not in (b"", b"%d" % number):
            continue
        rank = 0
        if family == FAMILY_LOCAL and address == os.fsencode(hostname):
            rank = 3
        elif family == FAMILY_WILD:
            rank = 2
        elif family == FAMILY_LOCAL:  # the host was renamed later
            rank = 1
        best = max(best, (rank, secret)) if rank else best
    return best[1]


def _words(data: bytes) -> tuple[list[bytes], bytes]:
    """Split off four counted strings, fewer at the end of the data; return them and the rest."""
    words: list[bytes] = []
    while len(words) < 4 and len(data) >= 2:
        length = int.from_bytes(data[:2], "big")
        if len(data) < 2 + length:
            return words, b""
        words.append(data[2 : 2 + length])
        data = data[2 + length :]
    return words, data


def authority(number: int, secret: bytes) -> bytes:
    """An Xauthority file with one cookie, for display NUMBER at any host name."""
    words = (b"", b"%d" % number, COOKIE_NAME, secret)
    return FAMILY_WILD.to_bytes(2, "big") + b"".join(len(word).to_bytes(2, "big") + word for word in words)


class Setup(Opening):
    """A client's connection setup: checks for the session's cookie and replaces it by the real one."""

    def __init__(self, ours: bytes, real: bytes) -> None:
        """real: b"" for a server without authorization."""
        self.ours, self.real, self.held = ours, real, b""

    def feed(self, data: bytes) -> bytes:
        """Collect data; return the whole setup once it is complete. Raises ValueError."""
        self.held += data
        if len(self.held) < _HEAD:
            return b""
        order = {ord("l"): "<", ord("B"): ">"}.get(self.held[0])
        if order is None:
            raise ValueError
        form = struct.Struct(order + "BxHHHHxx")
        first, major, minor, names, secrets = form.unpack_from(self.held)
        if names > 256 or secrets > 256:
            raise ValueError
        at = _HEAD + _padded(names)
        end = at + _padded(secrets)
        if len(self.held) < end:
            return b""
        if self.held[_HEAD:][:names] != COOKIE_NAME or self.held[at:][:secrets] != self.ours:
            raise ValueError
        self.done = True
        name = COOKIE_NAME if self.real else b""
        head = form.pack(first, major, minor, len(name), len(self.real))
        words = b"".join(word.ljust(_padded(len(word)), b"\0") for word in (name, self.real))
        return head + words + self.held[end:]


def _padded(length: int) -> int:
    return length + 3 & ~3
