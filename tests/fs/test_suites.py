"""How the runners of the suites judge results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.servers import REPOSITORY
from tests.suites.results import FAIL, NOTRUN, PASS, Expectation, Outcome, Run, judge, read_cannot, read_table


def _problems(run: Run, table: list[Expectation], cannot: Path) -> dict[str, str]:
    return {verdict.test: verdict.problem for verdict in judge(run, table, read_cannot(cannot))}


def test_what_is_new_is_a_problem_and_what_the_tables_know_is_not(tmp_path: Path) -> None:
    cannot = tmp_path / "suite.cannot"
    cannot.write_text("# regex | where | reason\nfalloc|punch | pyfuse3 | no request for it\n")
    run = Run("suite", ["native", "pyfuse3", "devfuse"])
    for test in ("new", "known", "native too", "shrunk", "cannot", "elsewhere", "better"):
        run.add(test, "native", Outcome(FAIL if test == "native too" else PASS))
    for test in ("new", "known", "native too"):
        run.add(test, "pyfuse3", Outcome(FAIL))
    run.add("shrunk", "pyfuse3", Outcome(NOTRUN, detail="no idea"))
    run.add("cannot", "pyfuse3", Outcome(NOTRUN, detail="punch failed"))
    run.add("elsewhere", "devfuse", Outcome(NOTRUN, detail="punch failed"))
    run.add("better", "pyfuse3", Outcome(PASS))
    table = [Expectation("known", "*", FAIL, "a reason"), Expectation("better", "pyfuse3", FAIL, "once")]
    problems = _problems(run, table, cannot)
    assert {test for test, problem in problems.items() if problem} == {"new", "shrunk", "elsewhere", "better"}
    assert _problems(run, table, tmp_path / "absent")["cannot"]


def test_the_lists_of_the_repository_have_reasons(tmp_path: Path) -> None:
    suites = Path(__file__).parents[1] / "suites"
    for path in suites.glob("*.table"):
        assert all(row.where in ("native", "pyfuse3", "devfuse", "*") for row in read_table(path)), path
    for path in suites.glob("*.cannot"):
        assert read_cannot(path), path
    (tmp_path / "wrong").write_text("regex | reason\n")
    with pytest.raises(ValueError, match="wrong:1"):
        read_cannot(tmp_path / "wrong")


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: a room is made of mounts")
def test_a_checkout_and_a_suite_below_tmp(tmp_path: Path) -> None:
    """The room's own /tmp hides neither. A suite of which nothing was run has not passed."""
    checkout, suite = tmp_path / "checkout", tmp_path / "suite"
    for part in ("cntr", "testkit", "tests/fs", "tests/suites"):
        shutil.copytree(REPOSITORY / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "tests" / "__init__.py").touch()
    (suite / "tests" / "a").mkdir(parents=True)
    (suite / "pjdfstest").touch()
    (suite / "tests" / "a" / "0.t").write_text('echo 1..1; test -f "${0%/*}/../../pjdfstest" && echo ok 1\n')
    command = [sys.executable, "-m", "tests.suites.pjdfstest", "--dir", "../suite", "--bindings", "devfuse"]
    space = {"CNTR_SUITE_SPACE": str(tmp_path), "PYTHONPATH": str(checkout)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], cwd=checkout, env=os.environ | space, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    report = (checkout / "reports" / "pjdfstest.txt").read_text()
    assert [line.split()[:2] for line in report.splitlines()[2:4]] == [["native", "1"], ["devfuse", "1"]], report
    nothing = run("chmod")
    assert (nothing.returncode, nothing.stderr) == (2, "no such test, so nothing was run\n"), nothing.stdout
