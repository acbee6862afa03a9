"""A command's standard streams: which of the caller's it gets directly, and which are relayed through pipes.

An fd gives more than its direction. A file open for reading can be reopened for writing through /proc/self/fd/0; a
directory leads to its whole file system; a terminal can be read and typed into after the session; either end of a
pipe can be reopened as the other. So

- a terminal is never handed over: a pty of the session's own replaces it if stdin and stdout both are terminals, else a pipe
- neither is a regular file, directory, device or named FIFO; /dev/null is, from a read-only mount, so nobody can chmod the host's
- a pipe or a socket is handed to tools (``attach``), but not to a program of the container's (``exec``)

For a file, the offset at the end is set back by what is left in stdin's pipe. From a pipe or a terminal nothing is
read before the command waits for input (readers.py); once it has, a pipe is read continuously.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os
import select
import stat
import time

from cntr.attach import readers
from cntr.errors import CntrError
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.signals import SignalFile

CHUNK = 1 << 16
PIPE_BUF = 4096  # free space in a pipe that polls writable (pipe(7))
TERMINAL_BUF = 512  # a terminal that polls writable has little more room
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1  # seconds between checks whether the command waits for input

NOTHING, NULL, TERMINAL, PIPE, SOCKET, FILE = range(6)


def kind_of(fd: int) -> int:
    """Classify FD as far as it matters here."""
    try:
        status = os.fstat(fd)
    except OSError:
        return NOTHING
    mode = status.st_mode
    if stat.S_ISSOCK(mode):
        return SOCKET
    if stat.S_ISFIFO(mode):  # a named FIFO can be reopened, as its mode allows
        return PIPE if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:") else FILE
    if not stat.S_ISCHR(mode):
        return FILE
    if status.st_rdev == os.makedev(1, 3):
        return NULL
    return TERMINAL if os.isatty(fd) else FILE


def read_only_null() -> int:
    """Open /dev/null through a read-only clone of its mount: it can still be written, but its mode and owner cannot
    be changed.

    -1 if the kernel cannot make one (mount_setattr(2): 5.12).
    """
    try:
        tree = syscalls.open_tree(syscalls.AT_FDCWD, os.devnull, syscalls.OPEN_TREE_CLONE)
    except OSError:
        return -1
    try:
        syscalls.mount_setattr(tree, "", recursive=False, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        return os.open(f"/proc/self/fd/{tree}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    finally:
        os.close(tree)


class Input:
    """Relays stdin to the command's pipe. fd: the caller's; pipe: our end, -1 once closed; link: how /proc shows
    the pipe.

    back: for a regular file, also the command's end of the pipe, to find out at the end what was not read.
    """

    __slots__ = ("again", "back", "buffer", "fd", "kind", "link", "pause", "pids", "pipe", "proc_fd", "taking")

    def __init__(self, fd: int, kind: int, pipe: int, reading: int) -> None:
        self.fd, self.kind, self.pipe, self.buffer = fd, kind, pipe, b""
        self.back = os.dup(reading) if stat.S_ISREG(os.fstat(fd).st_mode) else -1
        self.link = os.readlink(f"/proc/self/fd/{pipe}")
        self.taking = kind == FILE  # whether input is read without waiting for the command to ask
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
        if self.kind == TERMINAL and not _in_foreground(self.fd):
            return False  # reading would stop us (SIGTTIN)
        if not readers.wanted(self.proc_fd, self.pids(), self.link):
            return False
        self.taking = self.kind != TERMINAL
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

    def __init__(self, fd: int, kind: int, pipe: int) -> None:
        """pipe: our end."""
        self.fd, self.pipe, self.buffer = fd, pipe, b""
        self.due = -1  # bytes that were in the pipe at the session's end and are still to be read
        self.limit = TERMINAL_BUF if kind == TERMINAL else PIPE_BUF
        self.failed: OSError | None = None
        self.copy: Callable[[int, bytes], None] | None = None
        if kind == FILE and stat.S_ISREG(os.fstat(fd).st_mode):
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

    def close(self) -> None:
        """Close both ends."""
        self._close()


class Stdio:
    """All three streams. given: the command's fds 0, 1, 2; those above 2 are the session's ends, closed by
    ``hand_over``.
    """

    __slots__ = ("given", "input", "outputs")

    def __init__(self, slave: int, owner: int, *, foreign: bool) -> None:
        """slave: the session's pty slave, -1 without one; owner: the uid, in the caller's ids, that may reopen the
        pipes. Raises OSError.
        """
        self.given = [0, 1, 2]
        self.input: Input | None = None
        self.outputs: list[Output] = []
        try:
            for fd in (0, 1, 2):
                kind = kind_of(fd)
                if kind == TERMINAL and slave >= 0:
                    self.given[fd] = slave
                elif kind == NULL and (null := read_only_null()) >= 0:
                    self.given[fd] = null
                elif kind == NOTHING or (kind in (PIPE, SOCKET) and not foreign):
                    continue
                elif fd == 2 and self.given[1] > 2 and self.outputs and _same(1, 2):
                    self.given[2] = os.dup(self.given[1])  # one pipe for both, to keep the order of output
                else:
                    self.given[fd] = self._through_pipe(fd, kind, owner)
        except BaseException:
            self.hand_over(slave)
            self.close()
            raise

    def _through_pipe(self, fd: int, kind: int, owner: int) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            os.fchown(reading, owner, -1)  # otherwise a command with another uid could not open /dev/stdout
        except OSError:
            pass
        if fd == 0:
            self.input = Input(fd, kind, writing, reading)
            return reading
        self.outputs.append(Output(fd, kind, reading))
        return writing

    def hand_over(self, slave: int = -1) -> None:
        """Close the session's ends in this process, after the fork."""
        for fd in {fd for fd in self.given if fd > 2 and fd != slave}:
            os.close(fd)
        self.given = [0, 1, 2]

    def keep_session(self) -> None:
        """In the session's processes: close the supervisor's ends; otherwise the command would never see the end of
        its input.
        """
        for fd in [self.input.pipe, self.input.back] if self.input else []:
            if fd >= 0:
                os.close(fd)
        for output in self.outputs:
            os.close(output.pipe)

    def watch(self, proc_fd: int, pids: Callable[[], list[str]]) -> None:
        """Start checking whether the session's processes wait for input. pids: lists them."""
        if self.input:
            self.input.proc_fd, self.input.pids = proc_fd, pids

    def copy(self, copy: Callable[[int, bytes], None]) -> None:
        """Call COPY with what the command writes from now on."""
        for output in self.outputs:
            output.copy = copy

    def interests(self) -> dict[int, int]:
        """{fd: poll events}."""
        found = self.input.interests() if self.input else {}
        for output in self.outputs:
            found.update(output.interests())
        return found

    def patience(self) -> float | None:
        """Seconds until ``interests`` may change without an event; None for never."""
        pause = self.input.again - time.monotonic() if self.input and self.input.pipe >= 0 else 0.0
        return pause if pause > 0 else None

    def ready(self, fd: int, events: int) -> bool:
        """Move what can be moved; False if FD belongs to someone else."""
        if self.input and self.input.ready(fd, events):
            return True
        return any(output.ready(fd) for output in self.outputs)

    def drain(self, watch: SignalFile) -> None:
        """After the session's end: write its last output. A signal seen by WATCH ends the wait for a slow reader."""
        for output in self.outputs:
            while output.more():
                poll = select.poll()
                poll.register(output.fd, select.POLLOUT)
                poll.register(watch.fd, select.POLLIN)
                ready = [fd for fd, _ in poll.poll()]
                # SIGCHLD does not count: the monitor ends meanwhile.
                if watch.fd in ready and any(number != signal.SIGCHLD for number, _ in watch.read()):
                    return
                if output.fd in ready:
                    output.ready(output.fd)

    def close(self) -> None:
        """Close our ends."""
        if self.input:
            self.input.close()
        for output in self.outputs:
            output.close()

    def check(self) -> None:
        """Raise CntrError if output was lost."""
        for output in self.outputs:
            if output.failed:
                name = "stdout" if output.fd == 1 else "stderr"
                raise CntrError(
                    f"{name}: {output.failed.strerror}: the command's output is incomplete", "is the disk full?"
                )


def _same(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # not our controlling terminal: reading it never stops us
