"""How commands reach a machine: the interface of a carrier. There are two, `ssh.py` and `local.py` (namespaces of this
host).
"""

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
    """The result of a command. Undecodable bytes are replaced; scenarios about bytes compare checksums."""

    returncode: int
    stdout: str
    stderr: str


class Background(Protocol):
    """A running command."""

    def wait(self, timeout: float) -> int:
        """Wait for it and return its exit status. Raises TimeoutError."""

    def output(self) -> str:
        """Its output so far."""

    def close(self) -> None:
        """End it: close its standard input, hang up its terminal."""


class Carrier(Protocol):
    """Every method raises TimeoutError if a command takes too long, ConnectionError if the machine is unreachable."""

    def run(self, command: str, user: str, timeout: float, stdin: bytes) -> Result:
        """Run a command to its end."""

    def start(self, command: str, user: str) -> Background:
        """Start a command."""

    def terminal(self, command: str, user: str, columns: int, rows: int, slowness: float) -> Terminal:
        """Run a command on a pseudo-terminal."""

    def put(self, source: Path, target: str) -> None:
        """Copy files to the machine."""

    def testinfra(self) -> Any:
        """Return a testinfra host."""

    def close(self) -> None:
        """Drop the connections; the next command opens new ones."""


class Terminal:
    """The user's end of a pseudo-terminal: type, wait for text, resize.

    read: returns new bytes, b"" at the end, and raises TimeoutError after less than a second of silence.
    """

    def __init__(self, read: Any, write: Any, resize: Any, close: Any, status: Any, slowness: float) -> None:
        self._read, self._write, self.resize, self._close, self._status = read, write, resize, close, status
        self._slowness = slowness
        self.seen = ""
        self._mark = 0

    def type(self, text: str) -> None:
        """Send keys; `\\x03` is Ctrl-C, `\\r` is Enter."""
        self._write(text.encode())

    def shown(self) -> str:
        """The end of what has been shown until now."""
        begun = time.monotonic()
        while time.monotonic() < begun + 2 and self._pump():
            pass
        return self.seen.strip()[-500:] or "(nothing)"

    def expect(self, pattern: str, timeout: float = 20) -> str:
        """Wait until the regular expression matches the output since the last `expect`; return the match.

        Raises CommandFailed after `timeout` seconds of natural speed.
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
                raise CommandFailed(
                    f"expected: the session ends\nseen:     it is still running; last: {self.seen[-200:]!r}"
                )
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
    """A status as a shell shows it: 128 + signal for a killed process."""
    return returncode if returncode >= 0 else 128 - returncode


def owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A filter for `tarfile`: files put on a machine belong to root; byte code and repository history are left out."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return None if {"__pycache__", ".git"} & set(entry.name.split("/")) else entry
