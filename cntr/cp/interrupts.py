"""What ends a copy early: a signal, `cntr sessions end`, or its time limit."""

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
    """The copy was told to end. number: the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Signal handling from before the fork to the end of the copy. label: the container's; session: limits the time."""

    def __init__(self, label: str, session: Session | None) -> None:
        """Block the signals until each side has set its handlers."""
        self.label, self.session = label, session
        self.term: Term | None = None
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def release(self) -> None:
        """Restore the signals as they were."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def watch(self, warn: Callable[[str], None]) -> None:
        """On the host's side: raise Interrupted on a signal or when the time is over. warn: called a minute before."""
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
        """Ignore signals for the rest of the copy, which waits only for itself. The container's end lives as long as
        its pipes.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.release()

    def restore(self) -> None:
        """Restore the handlers at the end."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def error(self, number: int) -> CntrError:
        """The error for the signal that ended the copy, for the user and for the record."""
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
            except RuntimeError:  # the signal arrived while a line was being written
                self._wind()
                return
        self.ignore()  # a second one must not end the removal of what is unfinished
        raise Interrupted(number)
