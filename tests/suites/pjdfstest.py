"""Run an installed pjdfstest on ext4 and on CntrFS: python -m tests.suites.pjdfstest --dir PATH

PATH is a built copy of pjdfstest, with ``pjdfstest`` and ``tests/``.
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testkit import rooms
from testkit.servers import BINDINGS, REPOSITORY, SETID_AND_DEVICES, Server, missing

from .results import DIED, FAIL, NOTRUN, PASS, TIMEOUT, Outcome, Progress, Run, finish

TABLE = Path(__file__).with_name("pjdfstest.table")
_LINE = re.compile(r"^(ok|not ok) (\d+)(.*)$", re.MULTILINE)
_PLAN = re.compile(r"^1\.\.(\d+)(.*)$", re.MULTILINE)


def parse(output: str, status: int | None) -> Outcome:
    """The outcome of TAP output; a test that ended before its plan has failed."""
    plan = _PLAN.search(output)
    results = _LINE.findall(output)
    failed = [f"{number}{text}" for verdict, number, text in results if verdict == "not ok" and "# TODO" not in text]
    planned = int(plan[1]) if plan else 0
    if status is None:
        return Outcome(TIMEOUT, detail="killed at the time limit", checks=len(results), failed=len(failed))
    if plan and planned == 0:
        return Outcome(NOTRUN, detail=plan[2].strip(" #"))
    if plan and "skip" in plan[2].lower():
        return Outcome(NOTRUN, detail=plan[2].strip(" #"), checks=planned)
    missing_checks = max(0, planned - len(results)) if plan else 1
    if failed or missing_checks or not results:
        detail = "; ".join(failed[:5]) or f"ended after {len(results)} of {planned} checks"
        return Outcome(FAIL, detail=detail, checks=planned, failed=len(failed) + missing_checks)
    return Outcome(PASS, checks=planned)


class PjdfstestDirectory:
    """A directory on a fresh ext4, native or on a binding, whose server is restarted if it has died."""

    def __init__(self, name: str, room: Path) -> None:
        self.name = name
        self.backing = rooms.ext4(room, f"backing-{name}")
        self.server: Server | None = None
        self.directory = self.backing
        self.lock = threading.Lock()
        if name != "native":
            self.directory = room / f"mount-{name}"
            self.directory.mkdir()
            self.server = Server(name, self.backing, self.directory, room / f"{name}.log", options=SETID_AND_DEVICES)
            self.server.start()

    def run(self, test: Path, top: Path, limit: float) -> Outcome:
        relative = str(test.relative_to(top / "tests"))
        scratch = self.directory / relative.replace("/", "-")
        started = time.monotonic()
        try:
            scratch.mkdir(mode=0o755)
            status, output = rooms.run_limited(["/bin/sh", str(test)], limit, scratch)
            outcome = parse(output, status)
        except OSError as error:
            outcome = Outcome(FAIL, detail=str(error), checks=1, failed=1)
        outcome.seconds = round(time.monotonic() - started, 2)
        with self.lock:
            if self.server is not None and not self.server.alive:
                outcome = Outcome(
                    DIED,
                    outcome.seconds,
                    f"the server died: {self.server.log_end(500)}",
                    outcome.checks,
                    outcome.checks,
                )
                self.server.kill()
                self.server.start()
        return outcome

    def close(self) -> str:
        return self.server.stop() if self.server is not None else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.suites.pjdfstest", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="an installed (built) pjdfstest")
    parser.add_argument("--bindings", default=",".join(BINDINGS))
    parser.add_argument("--no-native", action="store_true", help="skip the native run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds per test file")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "reports")
    parser.add_argument("tests", nargs="*", help="such as chmod or rename/10.t; default: all")
    options = parser.parse_args()
    top = options.dir.resolve()
    if not (top / "pjdfstest").is_file() or not (top / "tests").is_dir():
        print(f"{top} holds no built pjdfstest (wanted: {top}/pjdfstest and {top}/tests)", file=sys.stderr)
        return 2
    room = rooms.enter(options.reports, top)
    names = [] if options.no_native else ["native"]
    for binding in filter(None, options.bindings.split(",")):
        if why := missing(binding):
            print(f"{binding} left out: {why}")
        else:
            names.append(binding)
    tests = sorted((top / "tests").glob("*/*.t"))
    if options.tests:
        tests = [
            test
            for test in tests
            if any(str(test.relative_to(top / "tests")).startswith(word) for word in options.tests)
        ]
    run = Run("pjdfstest", names, command=f"python -m tests.suites.pjdfstest {' '.join(sys.argv[1:])}")
    places = [PjdfstestDirectory(name, room) for name in names]
    progress = Progress(len(tests) * len(places))

    def one(test: Path) -> None:
        name = str(test.relative_to(top / "tests"))
        for place in places:
            outcome = place.run(test, top, options.limit)
            run.add(name, place.name, outcome)
            progress.step(
                f"{name} on {place.name}",
                outcome.status if not outcome.detail else f"{outcome.status} {outcome.detail}",
            )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, tests))
    for place in places:
        if problem := place.close():
            print(f"{place.name}: {problem}")
    return finish(run, TABLE, options.reports)


if __name__ == "__main__":
    sys.exit(main())
