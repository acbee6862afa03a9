"""``cntr mount``: a mount is recorded and listed like a session."""

from __future__ import annotations

import os

from cntr.attach.signals import END
from cntr.cntrfs import mounting, options
from cntr.errors import CntrError, complain, printable
from cntr.linux import opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit.session import Session
    from cntr.audit.times import Term
    from cntr.cli.parser import Parsed


class RecordedMount(mounting.MountSession):
    """A mount that is recorded, listed, and has a time limit. mountpoint: for messages."""

    end_signal = END

    def __init__(self, session: Session, mountpoint: str) -> None:
        self.session, self.mountpoint = session, printable(mountpoint)
        self.term: Term | None = None

    def begun(self) -> None:
        """Called when the mount is made: list it and start its time."""
        self.session.announce()
        if self.session.limit is not None:
            from cntr.audit import times

            self.term = times.Term(self.session.limit)
            times.print_no_more_after(self.session.limit)

    def must_end(self, signalled: int) -> bool:
        """Whether it must end, because of a signal or its time limit."""
        if signalled:
            self.session.why = "`cntr sessions end`" if signalled == END else f"signal {signalled}"
            if signalled == END:
                self._say(f"the session was ended: {self.session.why}")
        elif self.term and self.term.is_over(self._say):
            self.session.why = f"its time is over: {self.term}"
            self._say(f"the session was ended: {self.session.why}")
        return bool(self.session.why)

    def ended(self, status: int) -> None:
        """Write the record."""
        self.session.end(status)

    def _say(self, text: str) -> None:
        """Print TEXT; the background process has nobody to print to."""
        complain(f"cntr: {self.mountpoint}: {text}\n")


def run(parsed: Parsed, session: Session) -> int:
    """Mount as the command line says; return the exit status. Raises CntrError."""
    source, mountpoint = parsed.words
    if parsed.flag("verbose"):
        import logging

        logging.basicConfig(format="cntr: %(message)s", level=logging.INFO)
    life = RecordedMount(session, mountpoint)
    try:
        source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise CntrError(
            f"not a directory: {printable(source)}", "SOURCE and MOUNTPOINT are existing directories"
        ) from None
    # A link's name belongs to whoever made it, and it may lead elsewhere by the time it is mounted.
    life.opened, place = f"/proc/self/fd/{source_fd}", opened.place_of(source_fd)
    session.target = place or f"in another mount namespace: {os.path.abspath(source)}"
    settings = options.parse(",".join(parsed.texts("options")))
    if parsed.flag("read_only"):
        settings.read_only = True
    if parsed.flag("cache"):
        options.set_cache(settings, parsed.text("cache"))
    binding = parsed.text("binding", "auto")
    session.begin()
    status = mounting.run(
        place or source,
        mountpoint,
        settings,
        binding=None if binding == "auto" else binding,
        foreground=parsed.flag("foreground"),
        life=life,
    )
    if not parsed.flag("foreground"):
        session.hand_over()
    return status
