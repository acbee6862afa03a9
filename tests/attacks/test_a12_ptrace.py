"""A container that holds CAP_SYS_PTRACE can't be kept out of a session: what it finds there must be worth nothing, or cntr refuses.

Each test takes a refusal (status 125, a message) for an answer; with ``--force`` the user was told.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.attacks import kit
from tests.nest.box import REPOSITORY

PTRACE, ALL = 0xA80425FB | 1 << 19, (1 << 41) - 1
CODE = "import sys; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def python(place: pathlib.Path) -> str:
    """A copy of the host's Python that only this test runs: a file that is being run can't be written."""
    copy = str(place / "python")
    shutil.copy(os.path.realpath(sys.executable), copy)
    return copy


def visit(python: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", CODE, *words],
        env={**os.environ, "PYTHONPATH": REPOSITORY, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("capabilities", [PTRACE, ALL])
def test_the_executable_is_held_and_written_to(accomplice, canary, place, transport, python, capabilities):
    """CVE-2019-5736 through a process of ours in the container's pid namespace: its /proc/PID/exe is the host's Python."""
    before = pathlib.Path(python).read_bytes()
    with kit.hostile(
        place, accomplice, "hunt", "x", canary.path, canary.secret, "same", "same", capabilities=capabilities
    ) as box:
        kit.await_ready(box)
        for words in (["attach", str(box.pid), "--transport", transport], ["exec", str(box.pid)]):
            for _ in range(3):
                visit(python, *words, "--", "sh", "-c", "sleep 0.1; true")
        kit.attach(box, transport, command=["true"])  # time for the accomplice to try again
        assert [line for line in box.loot if line.startswith("written")] == []
        assert pathlib.Path(python).read_bytes() == before


@pytest.mark.parametrize("capabilities", [PTRACE, ALL])
def test_what_is_found_is_worth_nothing(accomplice, canary, place, transport, capabilities):
    """Every door is open to it; behind them is the tools view. (With all capabilities the disks are its own: it looks at doors only.)"""
    with kit.hostile(
        place, accomplice, "hunt", "lt", canary.path, canary.secret, "same", capabilities=capabilities
    ) as box:
        kit.await_ready(box)
        for _ in range(3):
            kit.attach(box, transport, command=["sh", "-c", "sleep 0.15"], timeout=30)
        assert box.proofs(canary.secret) == []


def test_the_callers_variables_are_not_in_a_sessions_memory(accomplice, canary, place, transport):
    """/proc/PID/environ of what is not the command yet is cntr's own."""
    with kit.hostile(place, accomplice, "hunt", "m", canary.path, canary.secret, "same", capabilities=PTRACE) as box:
        kit.await_ready(box)
        for _ in range(3):
            kit.attach(
                box,
                transport,
                command=["sh", "-c", "sleep 0.1"],
                env={"AWS_SECRET_ACCESS_KEY": canary.secret},
                timeout=30,
            )
        assert [line for line in box.loot if line.startswith("text")] == []
