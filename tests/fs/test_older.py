"""What a kernel does not say before it has a word for it, the server decides itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from testkit.servers import TreeUnderTest, missing, place, remove_tree

from .checks import Check, all_checks
from .checks._tools import Unsupported
from .expected import reason
from .older import OFFERED

#: Those that depend on who asks.
GROUPS = ("attributes.", "creation.", "privileges.", "xattrs.")
CHECKS = [check for check in all_checks() if check.name.startswith(GROUPS)]


@pytest.fixture(scope="module", params=OFFERED)
def offered(request: pytest.FixtureRequest) -> Iterator[TreeUnderTest]:
    if why := missing("devfuse"):
        pytest.skip(why)
    words = ("--foreground", "--binding", "devfuse", "-o", "suid,dev")
    argv = (sys.executable, "-m", "tests.fs.older", request.param, "{source}", "{mountpoint}", *words)
    with place("devfuse", argv) as made:
        yield made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_check(check: Check, offered: TreeUnderTest) -> None:
    name = offered.fresh()
    expected = reason("devfuse", check.name)
    try:
        check.run(offered.directory / name, offered.behind / name)
    except Unsupported as what:
        pytest.skip(f"missing in the backing filesystem: {what}")
    except (AssertionError, OSError) as error:
        if not expected:
            raise
        pytest.xfail(f"{expected} [{error}]")
    finally:
        remove_tree(offered.behind / name)
    assert offered.server is not None
    assert offered.server.alive
    assert not offered.server.new_suspicious_lines()
