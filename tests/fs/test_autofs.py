"""autofs below SOURCE mounts when a process enters, through CntrFS as by its own path, and not for a listing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import autofs
from testkit.servers import served

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: mounting needs it")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mount").mkdir()
    with autofs.filled(tmp_path / "source") as made:
        yield made


def _mounted(here: Path) -> list[str]:
    with open("/proc/self/mountinfo") as lines:
        return sorted(
            str(Path(line.split()[4]).relative_to(here))
            for line in lines
            if line.split()[4].startswith(f"{here}/") and " - tmpfs " in line
        )


@pytest.mark.parametrize("binding", ["plain", "devfuse", "pyfuse3"])
def test_what_is_walked_into_is_mounted(binding: str, source: Path, tmp_path: Path) -> None:
    with contextlib.nullcontext(source) if binding == "plain" else served(binding, tmp_path) as here:
        assert {entry.name: entry.is_dir() for entry in os.scandir(here / "maps")} == {"shown": True, "last": True}
        os.stat(here / "maps" / "shown"), os.stat(here / "direct")
        assert _mounted(source) == [], "looking at a name mounts nothing"
        assert os.listdir(here / "maps" / "hidden") == ["inside"]
        assert os.listdir(here / "maps" / "shown") == ["inside"]
        assert (here / "maps" / "last" / "inside").stat().st_size == 0
        assert (here / "direct" / "inside").stat().st_size == 0
        with pytest.raises(FileNotFoundError):
            os.listdir(here / "maps" / "unknown")
        assert _mounted(source) == ["direct", "maps/hidden", "maps/last", "maps/shown"]
