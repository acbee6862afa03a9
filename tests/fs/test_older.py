"""What the server decides itself on kernels that do not pass it on, and what older libraries lack."""

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


TRIO_0_13 = """
import sys, trio, types
from cntr.cntrfs import pyfuse3_binding
from cntr.cntrfs.__main__ import main
pyfuse3_binding.trio = types.SimpleNamespace(run=trio.run, open_nursery=trio.open_nursery, hazmat=trio.lowlevel)
sys.exit(main(sys.argv[1:]))
"""


def test_trio_without_lowlevel() -> None:
    """trio.lowlevel was called trio.hazmat before 0.15; Debian 11 has 0.13."""
    if why := missing("pyfuse3"):
        pytest.skip(why)
    words = ("{source}", "{mountpoint}", "--foreground", "--binding", "pyfuse3")
    with place("pyfuse3", (sys.executable, "-c", TRIO_0_13, *words)) as made:
        (made.directory / "f").write_text("x")
        assert (made.behind / "f").read_text() == "x"
        assert made.server is not None
        assert not made.server.new_suspicious_lines()
