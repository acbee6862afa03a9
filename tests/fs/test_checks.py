"""Every check, on a plain directory as the control and on CntrFS with each binding."""

from __future__ import annotations

import contextlib
import os

import pytest

from testkit.servers import BINDINGS, MODES, TreeUnderTest, remove_tree

from . import syscalls
from .checks import Check, all_checks
from .checks._tools import Unsupported
from .expected import EXPECTED, reason

CHECKS = all_checks()
WRITEBACK = tuple(name for name in MODES if name.endswith("-writeback"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_check(check: Check, here: TreeUnderTest) -> None:
    name = here.fresh()
    expected = reason(here.name, check.name)
    try:
        check.run(here.directory / name, here.behind / name)
    except Unsupported as missing:
        if here.server is not None:
            if expected:
                pytest.xfail(f"{expected} [{missing}]")
            _must_be_unsupported_plainly(check, here)
        pytest.skip(f"missing in the backing filesystem: {missing}")
    except (AssertionError, OSError) as error:
        if expected and (here.server is None or here.server.alive):
            pytest.xfail(f"{expected} [{type(error).__name__}: {error}]")
        raise
    finally:
        remove_tree(here.behind / name)
        if here.name in WRITEBACK:
            _forget_errors_of_writing(here)
    if expected and not (here.name in WRITEBACK and check.name.startswith("behind.")):
        # (The kernel may have dropped an inode meanwhile; it is asked for again, with everything
        # that changed behind the mount.)
        pytest.fail(f"passes, but is expected to fail: {expected}. Remove its line from expected.py", pytrace=False)


def _forget_errors_of_writing(here: TreeUnderTest) -> None:
    """A failed writeback is also reported to the next syncfs(2), which would be another check's."""
    fd = os.open(here.directory, os.O_RDONLY)
    with contextlib.suppress(OSError):
        syscalls.syncfs(fd)
    os.close(fd)


def _must_be_unsupported_plainly(check: Check, here: TreeUnderTest) -> None:
    """What the plain directory can do and the mount cannot is a failure or a row of the table, never a skip."""
    name = here.fresh()
    try:
        check.run(here.behind / name, here.behind / name)
    except Unsupported:
        return
    finally:
        remove_tree(here.behind / name)
    raise AssertionError("the plain directory supports this, the mount does not")


def test_table_names_real_checks_and_bindings() -> None:
    names = {check.name for check in CHECKS}
    for binding, check in EXPECTED:
        assert check in names, f"no such check: {check}"
        assert binding in (*BINDINGS, "writeback", "*"), f"no such binding: {binding}"


def test_check_names_are_unique() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
