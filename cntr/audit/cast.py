"""Recordings of sessions in asciicast v2: a line of JSON for the terminal, then one for each piece of output.

https://docs.asciinema.org/manual/asciicast/v2/. Input is not recorded, except for what the session's terminal echoed.
Each event is one write(2), so a crash loses nothing that was shown.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import time

from cntr.audit import write_all
from cntr.audit.behind_sudo import CallerOpener
from cntr.errors import CntrError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 256 << 20  # bytes of a file; recording then stops with a message
COLUMNS, ROWS = 80, 24  # for a session without a terminal


class Recorder:
    """A recording being written. size: bytes of events so far; failed: why nothing more is written."""

    __slots__ = ("begun", "decoders", "failed", "fd", "identity", "path", "size")

    def __init__(self, path: str, words: list[str]) -> None:
        """Create PATH, which must not exist, readable by the caller only; words: the command line. Raises CntrError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_APPEND | os.O_CLOEXEC
        try:
            # behind sudo: creating a file anywhere, with content of the user's choice, is more than a session permits
            with CallerOpener():
                self.fd = os.open(path, flags, 0o600)
        except OSError as error:
            hint = "a recording is a new file: name another" if error.errno == errno.EEXIST else ""
            raise CntrError(
                f"--record {printable(path)}: {error.strerror}", hint or "a directory that you may write to"
            ) from None
        self.path, self.identity, self.size, self.failed = path, os.fstat(self.fd), 0, ""
        self.begun = time.monotonic()
        # One for each stream: a character may be split, with output of the other stream in between.
        self.decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in (1, 2)}
        columns, rows = _size()
        head: dict[str, object] = {"version": 2, "width": columns, "height": rows, "timestamp": int(time.time())}
        head["command"] = printable(" ".join(["cntr", *words])[:4096])
        head["env"] = {
            name: printable(os.environ.get(name, "")[:64]) for name in ("TERM", "SHELL") if name in os.environ
        }
        self._write(json.dumps(head))

    def output(self, fd: int, data: bytes) -> None:
        """Record output on stdout (1) or stderr (2). Never raises."""
        if text := self.decoders[fd].decode(data):
            self._event("o", text)

    def resize(self) -> None:
        """Record a new size of the caller's terminal. Never raises."""
        columns, rows = _size()
        self._event("r", f"{columns}x{rows}")

    def _event(self, kind: str, text: str) -> None:
        if self.failed:
            return
        line = json.dumps([round(time.monotonic() - self.begun, 6), kind, text], ensure_ascii=False)
        if self.size + len(line) > LIMIT:
            self.failed = f"it is larger than {LIMIT >> 20} MiB"
            return
        self.size += self._write(line)

    def _write(self, line: str) -> int:
        """Write one line, whole or not at all; return its size in bytes."""
        data = f"{line}\n".encode("utf-8", "replace")
        before = os.fstat(self.fd).st_size
        try:
            write_all(self.fd, data)
        except OSError as error:
            self.failed = error.strerror or str(error)
            os.ftruncate(self.fd, before)
            return 0
        return len(data)

    def close(self, say: Callable[[str], None], *, unused: bool) -> None:
        """Close the file. unused: the session did not begin, so remove the file."""
        if self.fd < 0:
            return
        if unused:
            try:
                with CallerOpener():  # it may be another directory by now
                    if os.path.samestat(os.lstat(self.path), self.identity):
                        os.unlink(self.path)
            except OSError:
                pass
        os.close(self.fd)
        self.fd = -1
        if self.failed:
            say(f"--record {printable(self.path)}: the recording is incomplete: {self.failed}")


def _size() -> tuple[int, int]:
    for fd in (0, 1):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if columns > 0 and rows > 0:
            return columns, rows
    return COLUMNS, ROWS
