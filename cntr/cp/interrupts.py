"""What ends a copy before its end: a signal, `cntr sessions end`, or its time."""

from __future__ import annotations

import signal

from cntr.attach.signals import END
from cntr.errors import CntrError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.audit.session import Session
    from cntr.audit.times import Term

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, END)
STAYS = "no half-copied file stays; what was copied before does"


class Interrupted(Exception):
    """Asked to end; number: the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """From before the fork to the end of the copy; label: the container's. session: whose time it keeps to."""

    def __init__(self, label: str, session: Session | None) -> None:
        """Hold them back, until the two sides know which one they are."""
        self.label, self.session = label, session
        self.term: Term | None = None
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def release(self) -> None:
        """Let them through as they were before."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def watch(self, warn: Callable[[str], None]) -> None:
        """The host's side: raise Interrupted when one comes, or the time is over. warn: is told a minute before."""
        self.warn = warn
        for number, handler in self.before.items():
            ignored = handler == signal.SIG_IGN and number not in (signal.SIGALRM, END)
            signal.signal(number, signal.SIG_IGN if ignored else self._came)
        self.release()
        if self.session and self.session.limit is not None:
            from cntr.audit.times import Term

            self.term = Term(self.session.limit)
            self._wind()

    def ignore(self) -> None:
        """For the rest of the copy, which only waits for itself; the container's side lives as long as its pipes do."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.release()

    def restore(self) -> None:
        """It is over."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def error(self, number: int) -> CntrError:
        """What the user is told of the signal that ended it; the record too."""
        if number not in (signal.SIGALRM, END):
            return CntrError(f"interrupted: {STAYS}", "", 128 + number)
        why = "`cntr sessions end`" if number == END else f"its time is over: {self.term}"
        if self.session:
            self.session.why = why
        return CntrError(f"{self.label}: the session was ended: {why}", STAYS, 128 + signal.SIGHUP)

    def _wind(self) -> None:
        if self.term:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, self.term.patience()))

    def _came(self, number: int, frame: object) -> None:
        if number == signal.SIGALRM and self.term:
            try:
                if not self.term.is_over(self.warn):
                    self._wind()
                    return
            except RuntimeError:  # it came while a line was being written
                self._wind()
                return
        raise Interrupted(number)
