"""The results of a long suite: each test's status natively and on CntrFS, compared with a checked-in table."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

PASS, FAIL, NOTRUN, TIMEOUT, DIED = "pass", "fail", "notrun", "timeout", "died"
BAD = (FAIL, TIMEOUT, DIED)


@dataclass
class Outcome:
    """One test on one filesystem. checks/failed: the number of single checks, if the suite counts them."""

    status: str
    seconds: float = 0.0
    detail: str = ""
    checks: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Expectation:
    """A line of the table: TEST has STATUS on WHERE (native, pyfuse3, devfuse or *) for a REASON."""

    test: str
    where: str
    status: str
    reason: str


@dataclass
class Verdict:
    """The result of the comparison for one test on one filesystem: ok, or a description of the problem."""

    test: str
    where: str
    outcome: Outcome
    problem: str = ""
    reason: str = ""


@dataclass
class Run:
    """A run: test → place (native or a binding) → outcome."""

    suite: str
    places: list[str]
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    kernel: str = field(default_factory=platform.release)
    command: str = ""

    def add(self, test: str, place: str, outcome: Outcome) -> None:
        self.outcomes.setdefault(test, {})[place] = outcome

    def save(self, path: Path) -> None:
        """Write the file as a whole or not at all: a full disk must not cost the earlier results."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> Run:
        raw = json.loads(path.read_text())
        raw["outcomes"] = {
            test: {place: Outcome(**outcome) for place, outcome in places.items()}
            for test, places in raw["outcomes"].items()
        }
        return Run(**raw)


def read_table(path: Path) -> list[Expectation]:
    """Read lines of ``test | where | status | reason``; # starts a comment. A line without a reason is an error."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 4 or not all(cells):
            raise ValueError(f"{path.name}:{number}: wanted: test | where | status | reason")
        rows.append(Expectation(*cells))
    return rows


@dataclass(frozen=True)
class Cannot:
    """A line of the list: a test that says PATTERN can never run on WHERE (a binding, or * for both) for a REASON."""

    pattern: re.Pattern[str]
    where: str
    reason: str


def read_cannot(path: Path) -> list[Cannot]:
    """Read lines of ``regex | where | reason``; none if the suite has no such list."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        if line.strip() and not line.startswith("#"):
            cells = [cell.strip() for cell in line.split(" | ")]
            if len(cells) != 3 or not all(cells):
                raise ValueError(f"{path.name}:{number}: wanted: regex | where | reason")
            rows.append(Cannot(re.compile(cells[0]), cells[1], cells[2]))
    return rows


def why_not(cannot: list[Cannot], place: str, outcome: Outcome) -> str:
    """Why a test that did not run on PLACE can't run there; empty if the list has no reason."""
    if outcome.status != NOTRUN or place == "native":
        return ""
    return next((row.reason for row in cannot if row.where in ("*", place) and row.pattern.search(outcome.detail)), "")


def judge(run: Run, table: list[Expectation], cannot: list[Cannot]) -> list[Verdict]:
    """Find what is new: worse than native and not in the table, or better than in the table."""
    expected = {(row.test, row.where): row for row in table}
    verdicts = []
    for test, places in sorted(run.outcomes.items()):
        native = places.get("native")
        for place, outcome in places.items():
            row = expected.get((test, place)) or (expected.get((test, "*")) if place != "native" else None)
            known = why_not(cannot, place, outcome)
            verdict = Verdict(test, place, outcome, reason=row.reason if row else known)
            if row is not None and row.status != "any":
                if outcome.status != row.status:
                    verdict.problem = f"{outcome.status}, but the table says {row.status}: {row.reason}"
            elif row is None and place == "native":
                verdict.problem = ""  # what fails natively says nothing about CntrFS
            elif row is None and outcome.status in BAD and (native is None or native.status not in BAD):
                verdict.problem = f"{outcome.status}, native {native.status if native else 'not run'}: {outcome.detail}"
            elif (
                row is None and not known and outcome.status == NOTRUN and native is not None and native.status == PASS
            ):
                verdict.problem = f"turned into not run: {outcome.detail}"
            elif row is None and native is not None and outcome.failed > native.failed:
                verdict.problem = f"{outcome.failed} of {outcome.checks} checks fail, native {native.failed}"
            verdicts.append(verdict)
    return verdicts


def summary(run: Run, verdicts: list[Verdict]) -> str:
    """A table of the number of tests per place and status, and every problem."""
    kinds = (PASS, FAIL, NOTRUN, TIMEOUT, DIED)
    lines = [
        f"{run.suite} on {run.kernel}, {run.started}",
        f"{'':10}" + "".join(f"{kind:>9}" for kind in kinds) + "   checks   failed",
    ]
    for place in run.places:
        outcomes = [places[place] for places in run.outcomes.values() if place in places]
        count = Counter(outcome.status for outcome in outcomes)
        checks, failed = sum(outcome.checks for outcome in outcomes), sum(outcome.failed for outcome in outcomes)
        tail = f"{checks:9}{failed:9}" if checks else ""
        lines.append(f"{place:10}" + "".join(f"{count[kind]:9}" for kind in kinds) + tail)
    expected = [verdict for verdict in verdicts if verdict.reason and not verdict.problem]
    problems = [verdict for verdict in verdicts if verdict.problem]
    lines.append(f"{len(expected)} results as expected by the table, {len(problems)} new")
    lines += [f"  NEW  {verdict.test} on {verdict.where}: {verdict.problem}" for verdict in problems]
    return "\n".join(lines)


def write_junit(path: Path, run: Run, verdicts: list[Verdict]) -> None:
    """Write one test case per test and place; an expected failure is a skip with its reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suite = ElementTree.Element(
        "testsuite", name=run.suite, tests=str(len(verdicts)), failures=str(sum(bool(v.problem) for v in verdicts))
    )
    for verdict in verdicts:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{run.suite}.{verdict.where}",
            name=verdict.test,
            time=f"{verdict.outcome.seconds:.2f}",
        )
        if verdict.problem:
            ElementTree.SubElement(case, "failure", message=verdict.problem).text = verdict.outcome.detail
        elif verdict.outcome.status != PASS:
            ElementTree.SubElement(case, "skipped", message=verdict.reason or verdict.outcome.detail or "as native")
    ElementTree.ElementTree(suite).write(path, encoding="unicode", xml_declaration=True)


class Progress:
    """One line that is overwritten on a terminal; elsewhere a line for each important event."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.monotonic()
        self.tty = os.isatty(1)

    def step(self, text: str, status: str) -> None:
        self.done += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * (self.total - self.done)
        line = f"[{self.done}/{self.total}, {left / 60:.0f} min left] {text}: {status}"
        if self.tty:
            print(f"\r\033[K{line}", end="" if self.done < self.total else "\n", flush=True)
        elif status not in (PASS, NOTRUN) or self.done % 25 == 0 or self.done == self.total:
            print(line, flush=True)


def finish(run: Run, table_path: Path, reports: Path) -> int:
    """Save, judge and report. Returns the runner's exit status: 1 for a problem, 2 if there was nothing to run."""
    if not run.outcomes:
        print("no such test, so nothing was run", file=sys.stderr)
        return 2
    verdicts = judge(run, read_table(table_path), read_cannot(table_path.with_suffix(".cannot")))
    run.save(reports / f"{run.suite}.json")
    write_junit(reports / f"{run.suite}.junit.xml", run, verdicts)
    text = summary(run, verdicts)
    (reports / f"{run.suite}.txt").write_text(text + "\n")
    print(text)
    return 1 if any(verdict.problem for verdict in verdicts) else 0
