"""A pseudo-terminal on this host, for scenarios of the here driver."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios

from .transports import Terminal


def open_terminal(argv: list[str], columns: int, rows: int, slowness: float) -> Terminal:
    """Run `argv` as the leader of a session on a new terminal of the given size."""
    master, slave = pty.openpty()

    def resize(wide: int, high: int) -> None:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", high, wide, 0, 0))

    resize(columns, rows)
    # setsid --ctty: the terminal becomes the controlling one, so that Ctrl-C and window sizes become signals.
    process = subprocess.Popen(["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)

    def read() -> bytes:
        if not select.select([master], [], [], 1.0)[0]:
            raise TimeoutError
        try:
            return os.read(master, 65536)
        except OSError:  # EIO: the last process on the terminal is gone
            return b""

    def status() -> int:
        code = process.wait(10)
        return code if code >= 0 else 128 - code

    def close() -> None:
        with contextlib.suppress(OSError):
            os.close(master)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGHUP)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return Terminal(read, lambda data: os.write(master, data), resize, close, status, slowness)
