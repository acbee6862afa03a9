"""How the runners of the suites judge what they found."""

from __future__ import annotations

from pathlib import Path

import pytest

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
