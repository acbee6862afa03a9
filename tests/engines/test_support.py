"""Each row of tests/engines/support.py, the table in docs/engines.md, agrees with the tests."""

from __future__ import annotations

import pathlib
import re

import pytest

from cntr.engines import registry
from testkit.engines import rigs
from tests.engines import support


@pytest.mark.parametrize("row", support.ROWS, ids=lambda row: row.engine)
def test_each_row_is_one_of_three_kinds_and_its_tests_exist(row):
    if row.kind == support.ENGINE:
        assert all(name in rigs.RIGS for name in row.tests), row.tests
        return
    assert row.kind in (support.LAYOUT, support.REFUSED)
    here = pathlib.Path(__file__).parent
    defined = set(
        re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in here.glob("test_*.py")), re.MULTILINE)
    )
    assert set(row.tests) <= defined, set(row.tests) - defined


def test_every_rig_and_every_engine_has_a_row():
    assert set(rigs.RIGS) - {"gvisor"} == {
        name for row in support.ROWS if row.kind == support.ENGINE for name in row.tests
    }
    prefixes = {prefix.partition(":")[0] for row in support.ROWS for prefix in row.prefix.split(", ")}
    for entry in registry.REGISTRY:
        assert entry.name in prefixes or prefixes & set(entry.aliases), entry.name


def test_the_variants_of_a_rig_are_described():
    documented = set(re.findall(r"^    ((?:\w+(?:, )?)+)  ", rigs.__doc__ or "", re.MULTILINE))
    names = {name for group in documented for name in group.split(", ")}
    assert {case.values[1] for case in rigs.CASES} <= names, {case.values[1] for case in rigs.CASES} - names
