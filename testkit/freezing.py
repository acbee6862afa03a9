"""A cgroup that can be frozen, on either version of cgroups(7)."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest

from testkit.waiting import wait_until


class Freezer:
    """directory: the cgroup's; file: writing the word ``freeze`` or ``thaw`` to it freezes or thaws its processes."""

    def __init__(self, directory: pathlib.Path, file: str) -> None:
        self.directory, self.file = directory, directory / file
        self.freeze, self.thaw = ("FROZEN", "THAWED") if file == "freezer.state" else ("1", "0")


@contextlib.contextmanager
def freezer(name: str) -> Iterator[Freezer]:
    """A new cgroup, thawed and removed at the end. Skips the test where none can be made."""
    for top, file in (("unified", "cgroup.freeze"), ("", "cgroup.freeze"), ("freezer", "freezer.state")):
        directory = pathlib.Path("/sys/fs/cgroup", top, f"{name}-{os.getpid()}")
        if top or os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            with contextlib.suppress(OSError):
                directory.mkdir()
                if (directory / file).exists():
                    break
                directory.rmdir()
    else:
        pytest.skip("cannot create a cgroup that can be frozen here")
    made = Freezer(directory, file)
    try:
        yield made
    finally:
        made.file.write_text(made.thaw)
        wait_until(lambda: not (directory / "cgroup.procs").read_text(), "its cgroup is empty")
        directory.rmdir()
