"""Frames over two pipes: the tree goes from sender to receiver, answers and complaints go back.

    sender → receiver   START                the thing named on the command line: flags, then an ITEM
                        ITEM                 meta, name, and a symbolic link's target; a directory's items follow it, up to UP
                        LINK                 meta, name, and the path below the top of the file it is a hard link to
                        BLOCK TRUNCATE XATTR a file's data, its size, then its extended attributes; a directory's before UP
                        END                  the file is whole (1) or to be dropped (0)
                        DONE                 that was all
    receiver → sender   READY                device and inode of the directory that the tree goes to
    child → parent      PROBLEM NOTE FATAL   what the user is to be told, on whichever pipe the child writes to

A frame is one byte of kind, the length of its body in four bytes (little endian), the body.
"""

from __future__ import annotations

import os
import stat
import struct

from cntr.errors import CntrError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

START, ITEM, LINK, UP, BLOCK, TRUNCATE, XATTR, END = b"S", b"I", b"L", b"U", b"B", b"T", b"X", b"E"
DONE, READY, PROBLEM, NOTE, FATAL = b"Z", b"R", b"P", b"N", b"!"

CHUNK = 1 << 18  # bytes of data in one BLOCK
MAX_BODY = 1 << 21  # bytes; a longer frame is invalid
MAX_SHOWN = 4096  # bytes of a path in a message, from its end
FLUSH_AT = 1 << 16  # bytes collected before they are written
KEEP = 0xFFFFFFFF  # an id that no file has: chown(2) leaves the owner unchanged
F_SETPIPE_SZ = 1031  # linux/fcntl.h; fcntl has it since Python 3.10
PIPE_SIZE = 1 << 20  # bytes in a pipe, the most for an unprivileged user

_HEADER = struct.Struct("<cI")
_META = struct.Struct("<IIIqIqIQB")
_PAIR = struct.Struct("<I")
NUMBERS = struct.Struct("<QQ")
OFFSET = struct.Struct("<Q")
_SECOND = 10**9  # nanoseconds: 64 bits last until the year 2262

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def kind_of(mode: int) -> str:
    """``a socket`` and the like, for messages."""
    return KINDS.get(stat.S_IFMT(mode), "of unknown kind")


class Meta:
    """What a frame says about a file: st_mode, owner, times in ns, size in bytes; linked: whether a LINK may refer to
    it later.
    """

    __slots__ = ("atime", "gid", "linked", "mode", "mtime", "size", "uid")

    def __init__(self, mode: int, uid: int, gid: int, mtime: int, atime: int, size: int, linked: bool) -> None:
        self.mode, self.uid, self.gid, self.mtime, self.atime = mode, uid, gid, mtime, atime
        self.size, self.linked = size, linked

    def pack(self) -> bytes:
        """The header as bytes."""
        times = (*divmod(self.mtime, _SECOND), *divmod(self.atime, _SECOND))
        return _META.pack(self.mode, self.uid, self.gid, *times, self.size, self.linked)

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


def meta_of(info: os.stat_result) -> Meta:
    """From stat(2)."""
    linked = stat.S_ISREG(info.st_mode) and info.st_nlink > 1
    return Meta(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_atime_ns, info.st_size, linked)


def pack_item(meta: Meta, name: bytes, extra: bytes = b"") -> bytes:
    """The body of ITEM and LINK."""
    return meta.pack() + pack_pair(name, extra)


def unpack_item(body: bytes, *, named: bool = True) -> tuple[Meta, bytes, bytes]:
    """(meta, name, extra). Raises ProtocolError for a name that is not a single component; named: whether a name is
    required.
    """
    mode, uid, gid, seconds, ns, read, read_ns, size, linked = _META.unpack_from(body)
    name, extra = unpack_pair(body[_META.size :])
    if named and (name in (b"", b".", b"..") or b"/" in name or b"\0" in name):
        raise ProtocolError(f"a name that is none: {name!r}")
    mtime, atime = seconds * _SECOND + min(ns, _SECOND - 1), read * _SECOND + min(read_ns, _SECOND - 1)
    return Meta(mode, uid, gid, mtime, atime, size, bool(linked)), name, extra


def pack_pair(first: bytes, second: bytes) -> bytes:
    """Two byte strings as one."""
    return _PAIR.pack(len(first)) + first + second


def unpack_pair(body: bytes) -> tuple[bytes, bytes]:
    """The inverse of ``pack_pair``."""
    end = _PAIR.size + _PAIR.unpack_from(body)[0]
    return body[_PAIR.size : end], body[end:]


class ProtocolError(Exception):
    """The other side violated the protocol and is not trusted any further."""


class Outgoing:
    """The write end of a pipe. Frames are collected and written together.

    wait: called if a non-blocking pipe is full, returns when there is room; moved: called with the count of bytes
    written.
    """

    __slots__ = ("buffer", "fd", "moved", "wait")

    def __init__(self, fd: int) -> None:
        """fd: blocking, unless ``wait`` is set."""
        self.fd, self.buffer = fd, bytearray()
        self.wait: Callable[[], None] = _never
        self.moved: Callable[[int], None] = nothing

    def send(self, kind: bytes, *parts: bytes) -> None:
        """Send one frame. Raises BrokenPipeError if the other side has gone."""
        self.buffer += _HEADER.pack(kind, sum(map(len, parts)))
        for part in parts:
            self.buffer += part
        if len(self.buffer) >= FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Write the collected frames. Raises BrokenPipeError."""
        buffer, self.buffer = self.buffer, bytearray()
        view, done = memoryview(buffer), 0
        while done < len(buffer):
            try:
                count = os.write(self.fd, view[done:])
            except BlockingIOError:
                self.wait()
                continue
            done += count
            self.moved(count)


class Incoming:
    """The read end of a pipe."""

    __slots__ = ("stream",)

    def __init__(self, fd: int) -> None:
        """fd: blocking; owned."""
        self.stream = os.fdopen(fd, "rb", PIPE_SIZE)

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame: kind and body. Raises EOFError if the other side has gone, ProtocolError."""
        kind, length = _HEADER.unpack(self._read(_HEADER.size))
        if length > MAX_BODY:
            raise ProtocolError(f"a frame of {length} bytes")
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) < count:
            raise EOFError
        return data


class Tell:
    """Receives messages for the user. A problem makes the exit status 1, a note does not.

    label: prefix of this side's paths, ``engine:name:`` in the container.
    """

    label = ""

    def show(self, path: bytes) -> str:
        """A path of this side, safe for a message."""
        return self.label + printable(os.fsdecode(path[-MAX_SHOWN:]))

    def problem(self, path: bytes, text: str) -> None:
        """PATH was not copied, or not completely, because of TEXT."""
        raise NotImplementedError

    def note(self, text: str, path: bytes) -> None:
        """PATH was copied, but TEXT applies. Notes with the same text are shown together."""
        raise NotImplementedError


class Remote(Tell):
    """In the child: sends the messages to the parent."""

    def __init__(self, out: Outgoing, label: str) -> None:
        """out: the pipe to the parent."""
        self.out, self.label = out, label

    def problem(self, path: bytes, text: str) -> None:
        """A PROBLEM frame."""
        self._send(PROBLEM, path, text)

    def note(self, text: str, path: bytes) -> None:
        """A NOTE frame."""
        self._send(NOTE, path, text)

    def fatal(self, error: CntrError) -> None:
        """Send a FATAL frame, which ends the copy."""
        message, hint = (text.encode("utf-8", "backslashreplace") for text in (error.message, error.hint))
        self.out.send(FATAL, pack_pair(message, pack_pair(hint, b"%d" % error.exit_code)))
        self.out.flush()

    def _send(self, kind: bytes, path: bytes, text: str) -> None:
        shown = self.label.encode("utf-8", "backslashreplace") + path[-MAX_SHOWN:]
        self.out.send(kind, pack_pair(shown, text.encode("utf-8", "surrogateescape")))
        self.out.flush()


def take_word(kind: bytes, body: bytes, tell: Tell) -> bool:
    """Whether the frame is a message for the user, which is passed to TELL. Raises CntrError for FATAL."""
    if kind not in (PROBLEM, NOTE, FATAL):
        return False
    first, second = unpack_pair(body)
    if kind == FATAL:
        hint, code = unpack_pair(second)
        raise CntrError(first.decode("utf-8", "replace"), hint.decode("utf-8", "replace"), int(code))
    text = second.decode("utf-8", "surrogateescape")
    if kind == PROBLEM:
        tell.problem(first, text)
    else:
        tell.note(text, first)
    return True


def denied(label: str, path: bytes = b"") -> str:
    """The hint for EACCES and EPERM; label: empty on the host's side."""
    if label and path.startswith(b"/proc/"):
        return "its owner shows it to those who may trace: `cntr attach` has /proc with the session's rights"
    if label:
        return "it belongs to an owner that the container's root has no power over"
    return "the host's side is read and written with your own rights"


def _never() -> None:
    raise RuntimeError("a blocking pipe does not wait")


def same(uid: int, gid: int) -> tuple[int, int]:
    """Returns its arguments: the other side uses the same ids."""
    return uid, gid


def nothing(what: object) -> None:
    """Does nothing."""
