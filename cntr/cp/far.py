"""A copy between this machine and a container on another one: each machine runs one end, and ssh provides the pipes
between them.

The container's end runs on the container's machine, as ``cntr --cp`` started by ``cntr --host HOST cp``. Both sides use
the container's numeric ids, because the machines' users have nothing in common.
"""

from __future__ import annotations

import mmap
import os
import signal

from cntr.cp.copy import Work, opened
from cntr.cp.host_end import HostWork
from cntr.cp.interrupts import Interrupted, Signals
from cntr.cp.words import Sides
from cntr.errors import CntrError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from cntr.audit.session import Session
    from cntr.progress import Tell as Event

    class Connection(Protocol):
        """The connection to the container's end."""

        def begin(self, hello: bytes) -> tuple[int, int]:
            """Start it; return the fds to read and to write, once it has written HELLO. Raises CntrError."""

        def end(self) -> int:
            """Wait for its end; return its exit status. Raises CntrError if the status is not its own."""


HERE = "-"  # on its command line: the other machine's side
HELLO = b"\0cntr-cp\n"  # before the first frame; a login shell may have printed something first


class RemoteWork(HostWork):
    """This machine's end."""

    same_machine = False

    def __init__(
        self,
        connection: Connection,
        label: str,
        *,
        archive: bool,
        follow: bool,
        outward: bool,
        event: Event | None = None,
    ) -> None:
        super().__init__(archive=archive, follow=follow, outward=outward, event=event)
        self.connection, self.label = connection, label

    def begin(self, container_path: bytes, signals: Signals) -> tuple[int, int]:
        """Start the connection, whose command line has that path."""
        signals.release()  # somebody may be asked for a password, and want to abort
        return self.connection.begin(HELLO)

    def end(self) -> None:
        """Wait for the container's end, which ends with its pipes."""
        self.connection.end()

    def ended_early(self) -> tuple[str, str]:
        """The connection was lost, or that end has reported why."""
        if status := self.connection.end():
            raise CntrError("", "", status)
        return super().ended_early()


def copy(
    sides: Sides,
    connection: Connection,
    *,
    archive: bool,
    follow: bool,
    say: Callable[[str], None],
    event: Event | None = None,
) -> int:
    """Run this machine's end; return the exit status, see ``cntr.cp.copy``. Raises CntrError."""
    label = printable(sides.target)
    end = RemoteWork(connection, label, archive=archive, follow=follow, outward=sides.outward, event=event)
    return end.run(sides.host_path, sides.container_path, say)


def serve(
    source: str, destination: str, *, archive: bool, follow: bool, say: Callable[[str], None], session: Session
) -> int:
    """Run the container's end on this process's stdin and stdout; return the exit status. Raises CntrError, UsageError."""
    sides = Sides(source, destination, far=HERE)
    session.target = sides.target
    read_fd, write_fd, null = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(2, 1)  # printed text must not mix with frames
    count = mmap.mmap(-1, 8)
    with opened(sides, say, session) as container:
        work = Work(container, archive=archive, follow=follow, outward=sides.outward)
        work.same_machine, work.moved = False, lambda more: _count(count, more)
        signals = Signals(work.label, session)
        os.write(write_fd, HELLO)
        pid = os.fork()
        if pid == 0:
            work.be_child(sides.container_path, read_fd, write_fd, signals)
        session.announce()
        os.close(read_fd)
        os.close(write_fd)
        try:
            signals.watch(say)
            os.waitpid(pid, 0)
        except Interrupted as error:
            signals.ignore()
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            raise signals.error(error.number) from None
        finally:
            session.copied = int.from_bytes(count[:], "little")
    return 0


def _count(count: mmap.mmap, more: int) -> None:
    count[:] = (int.from_bytes(count[:], "little") + more).to_bytes(8, "little")
