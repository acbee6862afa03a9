"""Files whose contents the kernel generates: what they show and accept depends on who opened them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.servers import Server, missing, open_to_others

from .actors import ROOT, USER

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the server runs as root")


@pytest.fixture(params=["", "as_nobody"])
def options(request: pytest.FixtureRequest) -> str:
    words: str = request.param
    return words


@pytest.fixture(params=["devfuse", "pyfuse3"])
def proc(request: pytest.FixtureRequest, options: str) -> Iterator[Path]:
    """/proc, served by the binding."""
    if missing(request.param):
        pytest.skip(missing(request.param))
    with tempfile.TemporaryDirectory() as base:
        mountpoint = Path(base, "mount")
        mountpoint.mkdir()
        open_to_others(mountpoint)
        words = ("-o", options) if options else ()
        server = Server(request.param, Path("/proc"), mountpoint, Path(base, "log"), options=words)
        server.start()
        try:
            yield mountpoint
            assert not server.new_suspicious_lines()
        finally:
            assert not server.stop()


def _addresses(proc: Path) -> bool:
    """Whether it shows kernel addresses."""
    with open(proc / "kallsyms", "rb") as file:
        return any(int(line.split()[0], 16) for line in file.read(4096).splitlines()[:-1])


def _slack(proc: Path, pid: int, value: bytes | None) -> int:
    fd = os.open(proc / str(pid) / "timerslack_ns", os.O_RDONLY if value is None else os.O_WRONLY)
    try:
        return len(os.read(fd, 100)) if value is None else os.write(fd, value)
    finally:
        os.close(fd)


@pytest.mark.parametrize("options", [""], indirect=True)
def test_the_opener_counts(proc: Path) -> None:
    plain = Path("/proc")
    for actor in (USER, ROOT):
        assert actor(_addresses, proc) == actor(_addresses, plain), actor.name
    with subprocess.Popen(["sleep", "60"]) as other:  # root's
        try:
            for place in (plain, proc):
                for value in (b"77777", None):
                    with pytest.raises(PermissionError):
                        USER(_slack, place, other.pid, value)
                assert ROOT(_slack, place, other.pid, b"66666") == 5
                assert Path(f"/proc/{other.pid}/timerslack_ns").read_text() == "66666\n"
        finally:
            other.kill()


@pytest.mark.parametrize("options", ["as_nobody"], indirect=True)
def test_nobody_sees_what_a_user_sees(proc: Path) -> None:
    assert ROOT(_addresses, proc) == USER(_addresses, Path("/proc"))
