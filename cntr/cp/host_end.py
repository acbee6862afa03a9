"""The host's end of a copy. It keeps exactly the caller's rights, and trusts nothing from the other end."""

from __future__ import annotations

import contextlib
import os
import resource
import select

from cntr.cp import owners, stream
from cntr.cp.interrupts import Interrupted, Signals
from cntr.cp.receive import Receiver
from cntr.cp.send import Sender
from cntr.cp.stream import Incoming, Outgoing, ProtocolError, Tell
from cntr.cp.streams import StreamReceiver, StreamSender
from cntr.cp.words import own_fd
from cntr.errors import CntrError, printable
from cntr.progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.audit.session import Session
    from cntr.cp.stream import Meta
    from cntr.progress import Tell as Event

PARTIAL = 1  # exit status: something was not copied, and was named


class Console(Tell):
    """Output to the user: problems at once, equal notes together at the end, progress in between."""

    def __init__(self, say: Callable[[str], None], event: Event | None = None) -> None:
        """say: prints one line; event: for a program, gets everything instead."""
        self.say, self.event, self.problems = say, event, 0
        self.notes: dict[str, list[str]] = {}
        self.progress = Progress(tell=event)

    def problem(self, path: bytes, text: str) -> None:
        """Print one line, and set the exit status."""
        self.problems += 1
        self.progress.clear()
        shown = printable(os.fsdecode(path))
        if self.event:
            self.event("problem", {"path": shown, "text": printable(text)})
        else:
            self.say(f"{shown}: {printable(text)}")

    def note(self, text: str, path: bytes) -> None:
        """Collect a note; at the end the first path and the count are shown."""
        found = self.notes.setdefault(text, ["", ""])
        found[0] = found[0] or printable(os.fsdecode(path))
        found[1] += "x" if len(found[1]) < 1000 else ""

    def warn(self, text: str) -> None:
        """Print TEXT at once."""
        self.progress.clear()
        if self.event:
            self.event("warning", {"text": text})
        else:
            self.say(text)

    def close(self) -> None:
        """Print the notes."""
        self.progress.clear()
        for text, (path, count) in self.notes.items():
            if self.event:
                self.event("note", {"path": path, "text": printable(text), "count": len(count)})
                continue
            more = f" (and {len(count) - 1} more)" if len(count) > 1 else ""
            self.say(f"note: {path}{more}: {printable(text)}")


class HostWork:
    """The host's end of one copy. outward: from the container to the host."""

    label = ""  # of the container
    same_machine = True

    def __init__(self, *, archive: bool, follow: bool, outward: bool, event: Event | None = None) -> None:
        self.event, self.archive, self.follow, self.outward = event, archive, follow, outward
        self.copied = 0
        self.session: Session | None = None  # limits the time
        self.owners = owners.Owners()

    def begin(self, container_path: bytes, signals: Signals) -> tuple[int, int]:
        """Start the container's end, with signals blocked; return the fds to read and to write. Raises CntrError."""
        raise NotImplementedError

    def end(self) -> None:
        """Wait for the container's end, whose pipes are closed. Raises CntrError."""
        raise NotImplementedError

    def run(self, host_path: bytes, container_path: bytes, say: Callable[[str], None]) -> int:
        """Copy; return the exit status. Raises CntrError."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two fds for each level of a deep tree
        try:
            return self._run(own_fd(host_path), host_path, container_path, say)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def _run(self, stream_fd: int, host_path: bytes, container_path: bytes, say: Callable[[str], None]) -> int:
        console = Console(say, self.event)
        signals = Signals(self.label, self.session)
        try:
            read_fd, write_fd = self.begin(container_path, signals)
        except BaseException:
            signals.release()
            raise
        incoming, outgoing = Incoming(read_fd), Outgoing(write_fd)
        try:
            signals.watch(console.warn)
            with self._callers_rights():
                self._be_host(host_path, stream_fd, incoming, outgoing, console)
            return PARTIAL if console.problems else 0
        except Interrupted as error:
            raise signals.error(error.number) from None
        finally:
            signals.ignore()
            console.close()
            self.copied = console.progress.done
            if self.event:
                self.event("done", {"bytes": self.copied, "problems": console.problems})
            incoming.stream.close()
            os.close(outgoing.fd)
            self.end()
            signals.restore()

    def _callers_rights(self) -> contextlib.AbstractContextManager[None]:
        """Under a policy that allows some users some targets, `sudo cntr cp` is no way to any other file of this machine."""
        if not (self.session and self.session.policy and self.session.policy.rules):
            return contextlib.nullcontext()
        from cntr.audit.behind_sudo import CallerOpener

        return CallerOpener()

    def _be_host(self, path: bytes, stream_fd: int, incoming: Incoming, outgoing: Outgoing, console: Console) -> None:
        """stream_fd: if PATH is one of the caller's open files, its fd, else -1."""
        try:
            if self.outward:
                kind = Receiver if stream_fd < 0 else StreamReceiver
                receiver = kind(incoming, outgoing, console, open_on_host, archive=self.archive)
                receiver.fd = stream_fd
                receiver.metadata.owner, receiver.metadata.privileged = self.owners.outward, False
                receiver.started, receiver.moved = lambda meta: _expect(console, meta), console.progress.moved
                receiver.run(path)
            else:
                self._send(path, stream_fd, incoming, outgoing, console)
        except (EOFError, BrokenPipeError):
            raise CntrError(*self._why(incoming, console)) from None
        except ProtocolError as error:
            raise CntrError(
                f"{self.label}: {printable(str(error))}", "the copy was ended: its side is not to be trusted"
            ) from None

    def _send(self, path: bytes, stream_fd: int, incoming: Incoming, outgoing: Outgoing, console: Console) -> None:
        """Run the host's end of a copy into the container. Answers are read while the pipe is full; otherwise both
        sides would block.
        """

        def wait() -> None:
            poll = select.poll()
            poll.register(outgoing.fd, select.POLLOUT)
            poll.register(incoming.stream.fileno(), select.POLLIN)
            for fd, _ in poll.poll():
                if fd != outgoing.fd:
                    _take(incoming, console)

        os.set_blocking(outgoing.fd, False)
        outgoing.wait, outgoing.moved = wait, console.progress.moved
        own_fds = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kind = Sender if stream_fd < 0 else StreamSender
            sender = kind(outgoing, incoming, console, open_on_host, own_fds, archive=self.archive)
            sender.fd, sender.owner, sender.same_machine = stream_fd, self.owners.inward, self.same_machine
            sender.started = lambda meta: _expect(console, meta)
            sender.run(path, follow=self.follow)
        finally:
            os.close(own_fds)
        while _take(incoming, console):  # until every file has its name
            pass

    def _why(self, incoming: Incoming, console: Console) -> tuple[str, str]:
        """Message and hint if the container's end has gone. Raises CntrError with its last message, if there is one."""
        try:
            while _take(incoming, console):
                pass
        except EOFError:
            pass
        return self.ended_early()

    def ended_early(self) -> tuple[str, str]:
        """Message and hint if it sent no message. Raises CntrError."""
        return (
            f"{self.label}: the container's side of the copy ended unexpectedly",
            "run it again; `cntr --debug cp …` shows where",
        )


def open_on_host(path: bytes, flags: int) -> int:
    """Open what the user named on the host, following symbolic links as any program would."""
    return os.open(path, flags | os.O_CLOEXEC)


def _take(incoming: Incoming, console: Console) -> bool:
    """Handle one frame from a receiving child; False when it is done."""
    kind, body = incoming.receive()
    if kind == stream.DONE:
        return False
    if not stream.take_word(kind, body, console):
        raise ProtocolError(f"no word for the user: {kind!r}")
    return True


def _expect(console: Console, meta: Meta) -> None:
    console.progress.size = meta.size if meta.is_file() else 0
