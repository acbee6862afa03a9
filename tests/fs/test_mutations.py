"""A test of the suite itself: it must fail for a deliberately broken server."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from testkit.servers import BINDINGS, missing, place

from .checks import all_checks
from .checks._tools import Unsupported

if importlib.util.find_spec("cntr.cntrfs") is None:
    pytest.skip("cntr.cntrfs is missing", allow_module_level=True)

from .broken import MUTATIONS

CHECKS = {check.name: check for check in all_checks()}


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_server_is_caught(name: str, binding: str) -> None:
    if why := missing(binding):
        pytest.skip(why)
    mutation = MUTATIONS[name]
    argv = (
        sys.executable, "-m", "tests.fs.broken", name, "{source}", "{mountpoint}", "--foreground", "--binding", binding,
        *mutation.options,
    )  # fmt: skip
    passed = []
    with place(binding, argv) as broken:
        for wanted in mutation.caught_by:
            directory = broken.fresh()
            try:
                CHECKS[wanted].run(broken.directory / directory, broken.behind / directory)
            except (AssertionError, OSError):
                continue
            except Unsupported as reason:
                pytest.fail(f"{wanted} could not decide: {reason}")
            passed.append(wanted)
    assert not passed, f"a server with the fault {name} passes {passed}"


def test_the_six_exist() -> None:
    wanted = {
        "create-ignores-mode", "caller-is-ignored", "nodes-are-paths", "unlinked-files-are-lost",
        "setgid-not-inherited", "suid-survives-writing",
    }  # fmt: skip
    assert wanted <= MUTATIONS.keys()
