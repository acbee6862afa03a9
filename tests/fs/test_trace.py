"""``-o trace``: each request and its answer, in the terms of linux/fuse.h."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.session import OPERATIONS
from testkit.servers import missing, place

LINE = {
    "devfuse": re.compile(
        r"[A-Z0-9_]+ unique=\d+( nodeid=\d+( uid=\d+)? pid=\d+ in=\d+.*)?( = (0|E[A-Z0-9]+) out=\d+ \d+\.\d+ ms)?"
    ),
    "pyfuse3": re.compile(r"[A-Z]+ .*= (0|E[A-Z0-9]+) \d+\.\d+ ms"),
}


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_a_trace(binding: str) -> None:
    if missing(binding):
        pytest.skip(missing(binding))
    with place(binding, options=("-o", "trace")) as here:
        (here.directory / "new").write_text("x")
        (here.directory / "new").rename(here.directory / "newer\n")
        assert not (here.directory / "nowhere").exists()
        with pytest.raises(OSError, match="No data"):
            _getxattr(here.directory / "newer\n")
        assert here.server is not None
        log = here.server.log.read_text()
    lines = [line for line in log.splitlines() if not line.startswith("cntrfs:")]
    assert all(LINE[binding].fullmatch(line) for line in lines), lines
    assert any(line.startswith("LOOKUP ") and "'nowhere'" in line for line in lines)
    assert any(line.startswith("GETXATTR ") and " = ENODATA " in line for line in lines)
    assert any(line.startswith("RENAME") and r"'newer\n'" in line for line in lines)


def _getxattr(path: Path) -> None:

    os.getxattr(path, "user.none")


@pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
def test_every_operation_is_named_as_its_opcode() -> None:
    for number, operation in OPERATIONS.items():
        assert getattr(wire, operation.name) == number == operation.number
