"""What goes between the caller's streams and a command's pipes (stdio.py says which streams need that).

From a pipe or a terminal nothing is read before the command waits for input (readers.py); once it has, a pipe is read
continuously. For a file, the offset at the end is set back by what is left in stdin's pipe.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os
import select
import stat
import time

from cntr.attach import readers
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.signals import SignalFile

CHUNK = 1 << 16
PIPE_BUF = 4096  # free space in a pipe that polls writable (pipe(7))
TERMINAL_BUF = 512  # a terminal that polls writable has little more room
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1  # seconds between checks whether the command waits for input


class Input:
    """Relays stdin to the command's pipe. fd: the caller's; pipe: our end, -1 once closed; link: how /proc shows
    the pipe.

    back: for a regular file, also the command's end of the pipe, to find out at the end what was not read.
    """

    __slots__ = ("again", "back", "buffer", "fd", "link", "pause", "pids", "pipe", "proc_fd", "taking", "terminal")

    def __init__(self, fd: int, pipe: int, reading: int, *, terminal: bool, file: bool) -> None:
        """terminal, file: whether FD is one; file: also a directory or device. reading: the command's end."""
        self.fd, self.terminal, self.pipe, self.buffer = fd, terminal, pipe, b""
        self.back = os.dup(reading) if stat.S_ISREG(os.fstat(fd).st_mode) else -1
        self.link = os.readlink(f"/proc/self/fd/{pipe}")
        self.taking = file  # whether input is read without waiting for the command to ask
        self.again, self.pause = 0.0, FIRST_PAUSE  # monotonic time of the next check, seconds; then the pause
        self.proc_fd = -1  # both set by ``watch``
        self.pids: Callable[[], list[str]] = list
        os.set_blocking(pipe, False)

    def interests(self) -> dict[int, int]:
        """{fd: poll events}. POLLERR is always reported: nobody will read any more."""
        if self.pipe < 0:
            return {}
        if self.buffer:
            return {self.pipe: select.POLLOUT}
        return {self.pipe: 0} if self.again > time.monotonic() else {self.pipe: 0, self.fd: select.POLLIN}

    def ready(self, fd: int, events: int) -> bool:
        """Move what can be moved; False if FD belongs to someone else."""
        if fd == self.pipe:
            if events & select.POLLERR:
                self._close()
            elif self.buffer:
                self._write()
            return True
        if fd != self.fd or self.pipe < 0:  # closed by an event of the same round
            return fd == self.fd
        if events & select.POLLIN and not self._wanted():
            self.again = time.monotonic() + self.pause
            self.pause = min(self.pause * 2, LONGEST_PAUSE)
            return True
        self.pause = FIRST_PAUSE
        try:
            self.buffer = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # a directory; a terminal that is gone
            self.buffer = b""
        if self.buffer:
            self._write()
        else:
            self._close()
        return True

    def _wanted(self) -> bool:
        if self.taking or self.proc_fd < 0:
            return True
        if self.terminal and not _in_foreground(self.fd):
            return False  # reading would stop us (SIGTTIN)
        if not readers.wanted(self.proc_fd, self.pids(), self.link):
            return False
        self.taking = not self.terminal
        return True

    def _write(self) -> None:
        try:
            self.buffer = self.buffer[os.write(self.pipe, self.buffer) :]
        except BlockingIOError:
            pass
        except OSError:  # EPIPE
            self._close()

    def _close(self) -> None:
        os.close(self.pipe)
        self.pipe = -1

    def close(self) -> None:
        """Close it. A file's offset is set to where the command has read to, as if it had read the file itself."""
        if self.back >= 0:
            unread = len(self.buffer) + syscalls.bytes_in_pipe(self.back)
            os.close(self.back)
            self.back = -1
            if unread:
                os.lseek(self.fd, -unread, os.SEEK_CUR)
        if self.pipe >= 0:
            self._close()


class Output:
    """A pipe from the command to one of the caller's fds.

    failed: the error that lost output, None if the reader left; copy: called with each chunk: fd, bytes.
    """

    __slots__ = ("buffer", "copy", "due", "failed", "fd", "limit", "pipe")

    def __init__(self, fd: int, pipe: int, *, terminal: bool, file: bool) -> None:
        """pipe: our end."""
        self.fd, self.pipe, self.buffer = fd, pipe, b""
        self.due = -1  # bytes that were in the pipe at the session's end and are still to be read
        self.limit = TERMINAL_BUF if terminal else PIPE_BUF
        self.failed: OSError | None = None
        self.copy: Callable[[int, bytes], None] | None = None
        if file and stat.S_ISREG(os.fstat(fd).st_mode):
            self.limit = CHUNK
        os.set_blocking(pipe, False)

    def interests(self) -> dict[int, int]:
        """{fd: poll events}; a full buffer stops reading."""
        if self.buffer:
            return {self.fd: select.POLLOUT}
        return {self.pipe: select.POLLIN} if self.pipe >= 0 else {}

    def ready(self, fd: int) -> bool:
        """Move what can be moved; False if FD belongs to someone else."""
        if fd == self.fd and self.buffer:
            self._write()
            return True
        if fd != self.pipe or self.pipe < 0:
            return False
        self._read()
        return True

    def _read(self) -> bool:
        try:
            self.buffer = os.read(self.pipe, CHUNK)
        except BlockingIOError:
            return False
        if self.copy and self.buffer:
            self.copy(self.fd, self.buffer)
        if not self.buffer:
            self._close()
        return bool(self.buffer)

    def _write(self) -> None:
        try:
            self.buffer = self.buffer[os.write(self.fd, self.buffer[: self.limit]) :]
        except BlockingIOError:
            pass
        except OSError as error:  # the command gets SIGPIPE, as from a reader of its own
            if error.errno != 32:
                self.failed = self.failed or error
            self.buffer = b""
            self._close()

    def _close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def more(self) -> bool:
        """Whether output from before the session's end is unwritten. A process of the container may still write."""
        if self.due < 0:
            self.due = syscalls.bytes_in_pipe(self.pipe) if self.pipe >= 0 else 0
        if not self.buffer and self.due > 0 and self.pipe >= 0 and self._read():
            self.due -= len(self.buffer)
        return bool(self.buffer)

    def drain(self, watch: SignalFile) -> bool:
        """Write what came before the session's end; False if a signal seen by WATCH ended the wait for a slow reader."""
        while self.more():
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.register(watch.fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            # SIGCHLD does not count: the monitor ends meanwhile.
            if watch.fd in ready and any(number != signal.SIGCHLD for number, _ in watch.read()):
                return False
            if self.fd in ready:
                self.ready(self.fd)
        return True

    def close(self) -> None:
        """Close both ends."""
        self._close()


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # not our controlling terminal: reading it never stops us
