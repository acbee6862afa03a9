"""The results of a lab run: one cell per scenario, machine and transport."""

from __future__ import annotations

import dataclasses

SYMBOLS = {"pass": ".", "fail": "F", "skip": "s", "expected": "x", "unexpected": "X", "lost": "L"}
TRANSPORTS = ("mount", "devfuse", "pyfuse3")
BAD = ("fail", "unexpected", "lost")


@dataclasses.dataclass
class Cell:
    """One scenario on one machine by one transport."""

    machine: str
    transport: str
    scenario: str
    about: str
    file: str
    outcome: str
    reason: str
    seconds: float
    artefacts: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Run:
    """Everything for a report."""

    started: str
    seconds: float = 0.0
    host: dict[str, str] = dataclasses.field(default_factory=dict)
    machines: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    cells: list[Cell] = dataclasses.field(default_factory=list)
    peers: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Cells per outcome."""
        return {outcome: sum(c.outcome == outcome for c in self.cells) for outcome in SYMBOLS}
