"""``nox -s soak`` in small, and that it would see what is left."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from bench import soak
from testkit.container import SlimContainer
from testkit.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_many_attaches_leave_nothing(capsys):
    assert soak.main(["--attaches", "12", "--fuse", "2", "--sessions", "8"]) == 0
    assert capsys.readouterr().out.endswith("nothing is left\n")


def test_what_is_left_is_seen(tmp_path):
    with SlimContainer() as container:
        before = soak.Traces(container, "soaked")
        assert soak.Traces(container, "soaked").left(before) == []
        process = subprocess.Popen(["sleep", "60"], env=soak.environment("soaked"))
        held = os.open(os.devnull, os.O_RDONLY)
        path = pathlib.Path(f"/dev/shm/cntr-soaked-{os.getpid()}")
        path.touch()
        try:
            wait_until(lambda: len(soak.Traces(container, "soaked").left(before)) == 3, "process, fd and file")
        finally:
            path.unlink()
            os.close(held)
            process.kill()
            process.wait()
