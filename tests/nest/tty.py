"""A user at a terminal: cntr on a pty that a test types into and reads from."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

CNTR = (sys.executable, "-m", "cntr")


class Terminal:
    """Runs a command as the foreground job of a terminal (24x80). A context manager: leaving it closes the terminal."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.shown = b""
        environment = {**os.environ, "SHELL": "/bin/bash", "TERM": "dumb", **(env or {})}
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str, seconds: float = 15) -> re.Match[str]:
        """Read until PATTERN appears; what was read up to its end is consumed."""
        deadline = time.monotonic() + seconds
        while True:
            text = self.shown.decode(errors="replace")
            if found := re.search(pattern, text):
                self.shown = text[found.end() :].encode()
                return found
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} did not appear in {text!r}")
            try:
                self.shown += os.read(self.master, 65536)
            except OSError:
                raise AssertionError(f"the terminal closed before {pattern!r}: {text!r}") from None

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self.slave)
        os.close(self.master)
        self.slave = self.master = -1

    def mode(self) -> list[object]:
        return termios.tcgetattr(self.slave)
