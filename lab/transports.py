"""How commands reach a machine: what a carrier can do. There are two, `ssh.py` and `local.py` (namespaces of this host)."""

from __future__ import annotations

import dataclasses
import re
import tarfile
import time
from pathlib import Path
from typing import Any, Protocol

from .errors import CommandFailed

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>]")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command did. Undecodable bytes of its output are replaced; scenarios about bytes compare checksums."""

    returncode: int
    stdout: str
    stderr: str


class Background(Protocol):
    """A command under way."""

    def wait(self, timeout: float) -> int:
        """Its exit status; TimeoutError when it still runs."""

    def output(self) -> str:
        """What it wrote so far."""

    def close(self) -> None:
        """End it: its standard input closes, its terminal hangs up."""


class Carrier(Protocol):
    """Raises TimeoutError when a command takes too long, ConnectionError when the machine is out of reach."""

    def run(self, command: str, user: str, timeout: float, stdin: bytes) -> Result:
        """Run to the end."""

    def start(self, command: str, user: str) -> Background:
        """Run beside."""

    def terminal(self, command: str, user: str, columns: int, rows: int, slowness: float) -> Terminal:
        """Run on a pseudo-terminal."""

    def put(self, source: Path, target: str) -> None:
        """Copy."""

    def testinfra(self) -> Any:
        """A testinfra host."""

    def close(self) -> None:
        """Drop connections; the next command opens new ones."""


class Terminal:
    """The screen end of a pseudo-terminal: type, wait for text, resize.

    Args:
        read: returns bytes that came, b"" at the end, raises TimeoutError within a second of silence.
    """

    def __init__(self, read: Any, write: Any, resize: Any, close: Any, status: Any, slowness: float) -> None:
        self._read, self._write, self.resize, self._close, self._status = read, write, resize, close, status
        self._slowness = slowness
        self.seen = ""
        self._mark = 0

    def type(self, text: str) -> None:
        """Send keys; `\\x03` is Ctrl-C, `\\r` is Enter."""
        self._write(text.encode())

    def expect(self, pattern: str, timeout: float = 20) -> str:
        """Wait until the regular expression shows up in what came since the last `expect`; the matched text.

        Raises:
            CommandFailed: it did not, in `timeout` seconds of natural speed.
        """
        deadline = time.monotonic() + timeout * self._slowness
        while True:
            found = re.search(pattern, self.seen[self._mark :])
            if found:
                self._mark += found.end()
                return found.group()
            if time.monotonic() > deadline or not self._pump():
                tail = self.seen[self._mark :].strip()[-300:]
                raise CommandFailed(f"expected: /{pattern}/ on the terminal\nseen:     {tail or '(nothing)'}")

    def wait_closed(self, timeout: float = 20) -> int:
        """Wait for the command's end; its exit status."""
        deadline = time.monotonic() + timeout * self._slowness
        while self._pump():
            if time.monotonic() > deadline:
                raise CommandFailed(f"expected: the session ends\nseen:     it goes on; last: {self.seen[-200:]!r}")
        status: int = self._status()
        return status

    def _pump(self) -> bool:
        try:
            data = self._read()
        except TimeoutError:
            return True
        self.seen += ESCAPES.sub("", data.decode(errors="replace"))
        return bool(data)

    def close(self) -> None:
        """Hang up."""
        self._close()


def shell_status(returncode: int) -> int:
    """A shell's view of a status: 128 + signal where the process was killed."""
    return returncode if returncode >= 0 else 128 - returncode


def owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A filter for `tarfile`: what is put on a machine is root's, without byte code and without a repository's history."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return None if {"__pycache__", ".git"} & set(entry.name.split("/")) else entry
