"""Whether a client and its file server run on one processor: two states that last, and differ by several times.

A wake-up on another processor takes an interrupt there (/proc/interrupts), one on the same processor takes none. They
are counted for the whole machine, so the share means nothing if other programs are running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_WAKE_UPS = 2  # per request: the server's, and the client's by the answer


class Share:
    """turns: how often the server waited for a request; interrupts: between processors meanwhile."""

    def __init__(self) -> None:
        self.turns = self.interrupts = 0

    @property
    def crossed(self) -> float:
        """The share of wake-ups on another processor, 0 to 1."""
        return min(1.0, self.interrupts / (_WAKE_UPS * self.turns)) if self.turns else 0.0

    @contextlib.contextmanager
    def watched(self, server: int) -> Iterator[None]:
        """Count while the block runs. server: the serving pid."""
        turns, sent = _turns(server), _sent()
        yield
        self.turns += _turns(server) - turns
        self.interrupts += _sent() - sent


def _turns(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _sent() -> int:
    """Interrupts between processors since the machine started."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    sent = (line for line in lines if line.endswith(("Rescheduling interrupts", "Function call interrupts")))
    return sum(int(word) for line in sent for word in line.split() if word.isdigit())
