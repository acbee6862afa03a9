"""One engine's answer to the question for a name."""

from __future__ import annotations

from cntr.engines.container import NotRunning, Refused, RemoteRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.container import Container
    from cntr.engines.registry import Entry

LATE = ("no answer in time", "timed out")  # error texts: a late engine, a late socket


class Answer:
    """One engine's answer: its containers, or why it refused.

    owner: the uid of the engine's user, 0 for root's and the caller's own; called: the name of one that does not run;
    elsewhere: the machine
    its containers are on, as for ``--host``, "" for this one.
    """

    __slots__ = ("called", "containers", "elsewhere", "entry", "hint", "owner", "refused", "stopped")

    def __init__(self, entry: Entry, owner: int = 0) -> None:
        self.entry, self.owner, self.refused, self.stopped = entry, owner, LATE[0], False
        self.hint = self.elsewhere = self.called = ""
        self.containers: list[Container] = []

    def refuse(self, error: Refused) -> None:
        """Replace the answer by a refusal."""
        self.refused, self.hint, self.stopped = str(error), error.hint, isinstance(error, NotRunning)
        self.called = error.called
        self.elsewhere = error.host if isinstance(error, RemoteRefused) else ""
