"""What the server decides itself on kernels that do not pass it on, and what older libraries lack."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from testkit.servers import TreeUnderTest, missing, place, remove_tree

from .checks import Check, all_checks, xattrs
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


DEBIAN_11 = """
import sys, trio, types
from cntr.cntrfs import pyfuse3_binding
from cntr.cntrfs.__main__ import main
pyfuse3_binding.trio = types.SimpleNamespace(run=trio.run, open_nursery=trio.open_nursery, hazmat=trio.lowlevel)
getxattr = pyfuse3_binding.Operations.getxattr
pyfuse3_binding.Operations.getxattr = lambda self, inode, name, ctx: getxattr(self, inode, name)
sys.exit(main(sys.argv[1:]))
"""


def test_the_binding_of_debian_11() -> None:
    """trio.lowlevel was called trio.hazmat before 0.15, Debian 11 has 0.13; its pyfuse3, 3.2.0, looks for an attribute
    that shall be new or not without saying who asks.
    """
    if why := missing("pyfuse3"):
        pytest.skip(why)
    words = ("{source}", "{mountpoint}", "--foreground", "--binding", "pyfuse3")
    with place("pyfuse3", (sys.executable, "-c", DEBIAN_11, *words)) as made:
        (made.directory / "f").write_text("x")
        assert (made.behind / "f").read_text() == "x"
        (made.directory / "attributes").mkdir()
        xattrs.check_create_and_replace_flags(made.directory / "attributes")
        assert made.server is not None
        assert not made.server.new_suspicious_lines()
