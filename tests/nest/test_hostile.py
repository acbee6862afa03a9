"""A hostile container gets no access to the host through a session: not before, during or after its exec.

Several attackers (prowl.c) inspect every foreign process in their pid namespace as fast as they can while sessions
start and end. With exactly the container's capabilities a session would be open to them: its /proc/PID/root is the host's
tree. The control shows that, so these tests can fail.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer

# The sessions' commands: short ones, which are mostly set-up; a longer one; one with many processes.
COMMANDS = (
    ["true"],
    ["sh", "-c", "sleep 0.2"],
    ["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do cat /proc/self/status >/dev/null; done"],
)
WITHOUT_PROTECTION = (
    "import cntr.attach.identity, sys; cntr.attach.identity.CAP_SYS_PTRACE = 0; "
    "from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
)


def visits(
    target: str,
    flags: Sequence[str] = (),
    *,
    verb: str = "attach",
    rounds: int = 3,
    commands: Sequence[list[str]] = COMMANDS,
    program: Sequence[str] = CNTR,
    env: dict[str, str] | None = None,
) -> None:
    """Run every command ROUNDS times, two sessions at once."""

    def visit(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*program, verb, target, *flags, "--", *command],
            env={**(env or os.environ), "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(visit, [command for _ in range(rounds) for command in commands]):
            assert done.returncode == 0, done


class Loot:
    """The attackers' output."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        return sorted({" ".join(line.split()[:2]) for line in self.path.read_text().splitlines()})

    def raw(self) -> list[str]:
        return self.path.read_text().splitlines()

    def seen(self) -> int:
        """The number of inspections of foreign processes."""
        try:
            return int(self.path.with_name(f"{self.path.name}.seen").read_text() or 0)
        except FileNotFoundError:
            return 0


def ground(directory: pathlib.Path) -> Loot:
    """Make files that an attacker with any uid can write to."""
    for name in ("loot", "loot.seen"):
        (directory / name).touch()
        (directory / name).chmod(0o666)
    return Loot(directory / "loot")


def workspace(tmp_path: pathlib.Path, prowler: str, *roles: str, **properties: object) -> tuple[BusyboxContainer, Loot]:
    """A container whose first process starts the attackers."""
    root = tmp_path / "root"
    root.mkdir()
    loot = ground(root)
    container = BusyboxContainer(
        root=root,
        argv=["/prowl", "/loot", *roles],
        programs={"/prowl": prowler},
        files={"/etc/passwd": "root:x:0:0::/:/bin/sh\nslim:x:1000:1000::/:/bin/sh\n"},
        **properties,  # type: ignore[arg-type]
    )
    return container, loot


ATTACKERS = {
    "docker_default": (("same", "1000", "1000+"), {}),
    "cap_drop_all": (("same",), {"capabilities": 0}),
    "cap_drop_all_no_new_privs": (("same",), {"capabilities": 0, "no_new_privs": True}),
    "uid_1000": (("same",), {"uid": 1000}),
    "uid_1000_ambient": (("same",), {"uid": 1000, "ambient": 1 << 10 | 1 << 1}),
}


@pytest.mark.parametrize(
    ("attacker", "user"),
    [*((attacker, None) for attacker in ATTACKERS), ("docker_default", "1000"), ("uid_1000", "0"), ("uid_1000", "33")],
)
def test_an_attacker_gets_nothing(tmp_path, prowler, attacker, user):
    roles, properties = ATTACKERS[attacker]
    container, loot = workspace(tmp_path, prowler, *roles, **properties)
    with container:
        visits(str(container.pid), ["--user", user] if user else [])
        time.sleep(0.05)
        assert loot.lines() == []
        assert loot.seen() > 1000, "the attackers must have looked"


def test_an_attacker_gets_nothing_through_cntrfs(tmp_path, prowler):
    pytest.importorskip("pyfuse3", reason="the fuse transport needs cntr-attach[pyfuse3]")
    container, loot = workspace(tmp_path, prowler, "same", "1000", "1000+")
    with container:
        visits(str(container.pid), ["--transport", "fuse"], rounds=1)
        assert loot.lines() == []
        assert loot.seen() > 1000, "the attackers must have looked"


@pytest.mark.parametrize(("attacker", "user"), [("docker_default", None), ("docker_default", "1000")])
def test_control_without_the_added_capability_the_host_is_open(tmp_path, prowler, attacker, user):
    roles, properties = ATTACKERS[attacker]
    container, loot = workspace(tmp_path, prowler, *roles, **properties)
    with container:
        flags = ["--user", user] if user else []
        visits(str(container.pid), flags, rounds=1, program=[sys.executable, "-c", WITHOUT_PROTECTION])
        kinds = {line.split()[1] for line in loot.lines()}
        assert {"root", "exe", "environ", "fd", "mem", "maps"} <= kinds, kinds
        host = os.stat("/")
        assert any(f"{host.st_dev}:{host.st_ino}" in line for line in loot.raw() if " root " in line), (
            "the host's own root"
        )
