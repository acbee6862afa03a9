"""The pipes between the processes of a session.

Two pipes. *reports*: session → supervisor, frames of NUL-separated words in a length-prefixed packet. *orders*: supervisor →
session's monitor, one byte each, a signal number to pass on; its end of file says the supervisor is gone.
"""

from __future__ import annotations

import os

FAILED, NOTE, EXITED, KILLED, NEST, LEFT, DONE = "failed", "note", "exited", "killed", "nest", "left", "done"


class Channel:
    """Both pipes, before the fork; each side then closes what is not its own."""

    __slots__ = ("orders_read", "orders_write", "reports_read", "reports_write")

    def __init__(self) -> None:
        """Raises OSError (EMFILE)."""
        self.reports_read, self.reports_write = os.pipe2(os.O_CLOEXEC)
        self.orders_read, self.orders_write = os.pipe2(os.O_CLOEXEC)

    def keep_supervisor(self) -> None:
        """Close the session's ends."""
        os.close(self.reports_write)
        os.close(self.orders_read)
        os.set_blocking(self.reports_read, False)

    def keep_session(self) -> None:
        """Close the supervisor's ends: or its death would not be seen."""
        os.close(self.reports_read)
        os.close(self.orders_write)

    def report(self, *words: str) -> None:
        """Send one frame; below PIPE_BUF, so that frames of two processes never mix (pipe(7))."""
        body = "\0".join(words).encode("utf-8", "surrogateescape")[:4000]
        os.write(self.reports_write, len(body).to_bytes(2, "little") + body)

    def report_failure(self, step: str, error: BaseException) -> None:
        """A step failed: its errno and path, or for what is a mistake of ours what it is. Nothing may be printed by a session."""
        if isinstance(error, OSError):
            self.report(FAILED, step, str(error.errno or 0), error.filename if isinstance(error.filename, str) else "")
        else:
            self.report(FAILED, step, "0", f"{type(error).__name__}: {error}")

    def order(self, signal_number: int) -> None:
        """Have the monitor pass a signal on; nothing happens when it is gone."""
        try:
            os.write(self.orders_write, bytes([signal_number]))
        except BrokenPipeError:
            pass


class Reader:
    """Cuts the reports' byte stream back into frames."""

    __slots__ = ("buffer", "fd")

    def __init__(self, fd: int) -> None:
        """fd: the non-blocking reading end."""
        self.fd, self.buffer = fd, b""

    def frames(self) -> list[list[str]]:
        """All frames that have come in whole since the last call."""
        try:
            while chunk := os.read(self.fd, 1 << 16):
                self.buffer += chunk
        except BlockingIOError:
            pass
        found = []
        while len(self.buffer) >= 2 and len(self.buffer) >= (end := 2 + int.from_bytes(self.buffer[:2], "little")):
            found.append(self.buffer[2:end].decode("utf-8", "surrogateescape").split("\0"))
            self.buffer = self.buffer[end:]
        return found
