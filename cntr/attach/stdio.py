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

import os
import stat
import time

from cntr.errors import CntrError
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.relays import Input, Output
    from cntr.attach.signals import SignalFile

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
        # Most callers' streams are passed on as they are, or replaced by a terminal.
        from cntr.attach.relays import Input, Output

        terminal, file = kind == TERMINAL, kind == FILE
        if fd == 0:
            self.input = Input(fd, writing, reading, terminal=terminal, file=file)
            return reading
        self.outputs.append(Output(fd, reading, terminal=terminal, file=file))
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
            if not output.drain(watch):
                return

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
