"""The pipes between the processes of a session.

*reports*: monitor → supervisor, length-prefixed frames of NUL-separated words. *words*: the same, from the processes
that the container may see, and may write for if it can trace them. *orders*: supervisor → monitor, one byte each: the
number of a signal to pass on. End of file on *orders* means that the supervisor has died.
"""

from __future__ import annotations

import os

FAILED, NOTE, EXITED, KILLED, NEST, LEFT, DONE = "failed", "note", "exited", "killed", "nest", "left", "done"


class Channel:
    """The pipes, made before the fork. Each side then closes the ends that belong to the others."""

    __slots__ = ("orders_read", "orders_write", "reports_read", "reports_write", "words_read", "words_write")

    def __init__(self) -> None:
        """Raises OSError (EMFILE)."""
        self.reports_read, self.reports_write = os.pipe2(os.O_CLOEXEC)
        self.words_read, self.words_write = os.pipe2(os.O_CLOEXEC)
        self.orders_read, self.orders_write = os.pipe2(os.O_CLOEXEC)

    def keep_supervisor(self) -> None:
        """Close the session's ends."""
        for fd in (self.reports_write, self.words_write, self.orders_read):
            os.close(fd)
        for fd in (self.reports_read, self.words_read):
            os.set_blocking(fd, False)

    def keep_session(self) -> None:
        """Close the supervisor's ends; otherwise the session would not notice its death."""
        for fd in (self.reports_read, self.words_read, self.orders_write):
            os.close(fd)

    def keep_launcher(self) -> None:
        """Close the monitor's end: from now on, report by the other pipe."""
        os.close(self.reports_write)
        self.reports_write = self.words_write

    def report(self, *words: str) -> None:
        """Send one frame. Frames are shorter than PIPE_BUF, so frames of two processes never interleave (pipe(7))."""
        body = "\0".join(words).encode("utf-8", "surrogateescape")[:4000]
        os.write(self.reports_write, len(body).to_bytes(2, "little") + body)

    def report_failure(self, step: str, error: BaseException) -> None:
        """Report that a step failed: its errno and path, or the exception for an error in cntr itself. A session
        never prints.
        """
        if isinstance(error, OSError):
            self.report(FAILED, step, str(error.errno or 0), error.filename if isinstance(error.filename, str) else "")
        else:
            self.report(FAILED, step, "0", f"{type(error).__name__}: {error}")

    def order(self, signal_number: int) -> None:
        """Ask the monitor to pass a signal on; does nothing if the monitor is gone."""
        try:
            os.write(self.orders_write, bytes([signal_number]))
        except BrokenPipeError:
            pass


class Reader:
    """Splits the byte stream of reports into frames."""

    __slots__ = ("buffer", "fd")

    def __init__(self, fd: int) -> None:
        """fd: the read end, non-blocking."""
        self.fd, self.buffer = fd, b""

    def frames(self) -> list[list[str]]:
        """Return the complete frames that have arrived since the last call, at most a pipe's
        content: a tracer of the session may write without end.
        """
        for _ in range(16):
            try:
                chunk = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                break
            self.buffer += chunk
            if not chunk:
                break
        found, at = [], 0
        while len(self.buffer) >= (end := at + 2 + int.from_bytes(self.buffer[at : at + 2], "little")):
            found.append(self.buffer[at + 2 : end].decode("utf-8", "surrogateescape").split("\0"))
            at = end
        self.buffer = self.buffer[at:]
        return found
