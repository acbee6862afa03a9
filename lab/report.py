"""The matrix engine × transport × scenario: a table on the terminal, then JSON and HTML."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import html
from .errors import CommandFailed, LabError, LostMachine
from .results import BAD, SYMBOLS, Cell, Run

CLEAR_LINE = "\r\x1b[K"  # console_codes(4)


@dataclasses.dataclass
class MachineRow:
    """The cells of a machine and transport so far: outcomes, start of the first, end of the last."""

    transport: str
    began: float
    ended: float = 0.0
    cells: list[str] = dataclasses.field(default_factory=list)


def failure_text(error: BaseException) -> str | None:
    """A failure in its own words if they are complete; None: pytest's traceback is better."""
    if isinstance(error, CommandFailed):
        return str(error)
    if isinstance(error, LostMachine):
        return f"LOST: {error.message}\nlast on its console:\n{error.hint}"
    if isinstance(error, LabError):
        return f"{error.message}\n{error.hint}"
    return None


class Collector:
    """Collects cells from pytest's reports (of all xdist workers) and shows them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.place = Path(config.getoption("--lab-report"))
        self.run = Run(time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
        self._begun = time.monotonic()
        self._rows: dict[str, MachineRow] = {}
        # Parallel machines would mix their rows, so a row is shown when it is complete.
        self._several = bool(getattr(config.option, "numprocesses", 0))
        self._counted = self._several and sys.stdout.isatty()
        self._setup_seconds: dict[str, float] = {}

    # -- while tests run
    # ------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Suppress pytest's own dots, which would break the table; failures are still counted and shown at the end."""
        if any(key == "cell" for key, _ in report.user_properties):
            category = {"passed": "passed", "failed": "failed", "skipped": "skipped"}[report.outcome]
            if hasattr(report, "wasxfail"):
                category = "xfailed" if report.skipped else "xpassed"
            return (category if report.when == "call" or not report.passed else "", "", "")
        return None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one cell."""
        properties = dict(report.user_properties)
        if "cell" not in properties:
            return
        machine, transport, scenario = properties["cell"]
        if "facts" in properties:
            self.run.machines[machine] = properties["facts"]
        if report.when == "setup":
            self._setup_seconds[report.nodeid] = report.duration
        if not (report.when == "call" or not report.passed):
            return
        outcome, reason = _outcome(report, properties)
        if report.when == "teardown" and outcome == "pass":
            return
        cell = Cell(
            machine, transport, scenario, properties.get("about", ""), report.nodeid.split("::")[0].rsplit("/", 1)[-1],
            outcome, reason, round(report.duration, 2), properties.get("artefacts", []),
        )  # fmt: skip
        if "peers" in properties:
            self.run.peers += properties["peers"]
        self.run.cells.append(cell)
        self._show(cell)

    def _show(self, cell: Cell) -> None:
        row = self._rows.get(cell.machine)
        if row is None or row.transport != cell.transport:
            for machine in [cell.machine] if self._several else list(self._rows):
                self._end_row(machine)
            row = self._rows[cell.machine] = MachineRow(cell.transport, time.monotonic() - cell.seconds)
            if not self._several:
                print(f"\n{cell.machine:16} {cell.transport:8} ", end="", flush=True)
        row.cells.append(cell.outcome)
        row.ended = time.monotonic()  # the time after this may be another machine's start
        if not self._several:
            print(SYMBOLS[cell.outcome], end="", flush=True)
        elif self._counted:
            rows = (f"{name} {row.transport} {len(row.cells)}" for name, row in self._rows.items())
            print(f"{CLEAR_LINE}under way: {', '.join(rows)}", end="", flush=True)

    def _end_row(self, machine: str) -> None:
        row = self._rows.pop(machine, None)
        if row is None:
            return
        if self._several:
            symbols = "".join(SYMBOLS[outcome] for outcome in row.cells)
            print(f"{CLEAR_LINE if self._counted else ''}{machine:16} {row.transport:8} {symbols}", end="")
        words = ", ".join(f"{row.cells.count(outcome)} {outcome}" for outcome in SYMBOLS if outcome in row.cells)
        print(f"  {words}, {row.ended - row.began:.0f} s", end="\n" * self._several, flush=True)

    # -- at the end ----------------------------------------------------------------------------------------------

    def pytest_sessionfinish(self) -> None:
        """Write results.json and report.html; the terminal gets the failures in three lines each."""
        for machine in list(self._rows):
            self._end_row(machine)
        self.run.seconds = round(time.monotonic() - self._begun, 1)
        self.run.host = {"kernel": platform.release(), "cores": str(_cores()), "python": platform.python_version()}
        self.place.mkdir(parents=True, exist_ok=True)
        (self.place / "results.json").write_text(json.dumps(dataclasses.asdict(self.run), indent=1) + "\n")
        (self.place / "report.html").write_text(html.page(self.run))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the failed cells, and the path of the report."""
        write = terminalreporter.write_line
        write("")
        told = set()
        for cell in self.run.cells:
            if cell.outcome in BAD and (cell.outcome != "lost" or (cell.machine, cell.reason) not in told):
                told.add((cell.machine, cell.reason))  # a machine that was lost or not made is reported once
                write(f"{cell.outcome.upper():10} {cell.machine} {cell.transport} {cell.scenario}")
                for line in cell.reason.splitlines()[:3]:
                    write(f"           {line[:200]}")
                if cell.artefacts:
                    write(f"           see {self.place / cell.artefacts[0].rsplit('/', 1)[0]}/")
        for name, facts in self.run.machines.items():
            write(
                f"{name}: {facts.get('driver')}, {facts.get('accelerator')}, kernel {facts.get('kernel')}, {facts.get('cntr')}"
            )
        words = ", ".join(f"{number} {outcome}" for outcome, number in self.run.counts().items() if number)
        write(f"lab: {words or 'no cells'} in {self.run.seconds:.0f} s; {self.place / 'report.html'}")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _outcome(report: Any, properties: dict[str, Any]) -> tuple[str, str]:
    """The outcome's word and its reason."""
    if properties.get("lost"):
        return "lost", str(report.longrepr)
    if hasattr(report, "wasxfail"):
        return ("expected", report.wasxfail) if report.skipped else ("unexpected", f"passes, but: {report.wasxfail}")
    if report.failed:
        text = _brief(report.longrepr)
        if "[XPASS(strict)]" in text:
            return "unexpected", text.replace("[XPASS(strict)]", "passes, but was expected to fail:")
        return "fail", text
    if report.skipped:
        longrepr = report.longrepr
        return "skip", str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")
    return "pass", ""


def _brief(longrepr: Any) -> str:
    """A failure's own words; of a traceback, the assertion that failed."""
    text = str(longrepr)
    if text.startswith(("expected:", "LOST:", "machine ")):
        return text
    crash = getattr(longrepr, "reprcrash", None)
    if crash is not None and "\n" in crash.message:
        _, _, rest = crash.message.partition("\n")
        lines = [line.strip() for line in rest.splitlines()]
        if lines[0].startswith("expected:"):  # a comparison: plugin.pytest_assertrepr_compare
            return "\n".join([*lines[:2], f"at {crash.path.rsplit('/', 1)[-1]}:{crash.lineno}", *lines[2:]])
    return f"{crash.message}\nat {crash.path.rsplit('/', 1)[-1]}:{crash.lineno}" if crash is not None else text[-2000:]
