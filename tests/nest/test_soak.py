"""A short ``nox -s soak``, and that it detects leftovers."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from bench import soak
from testkit.container import SlimContainer
from testkit.waiting import wait_until

SEEN = {"process", "fd", "file"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_many_attaches_leave_nothing():
    words = ["--attaches", "12", "--fuse", "2", "--sessions", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", *words], cwd=soak.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("nothing is left\n")


def test_what_is_left_is_seen(tmp_path):
    with SlimContainer() as container:
        before = soak.Traces(container, "soaked")
        process = subprocess.Popen(["sleep", "60"], env=soak.environment("soaked"))
        held = os.open(os.devnull, os.O_RDONLY)
        path = pathlib.Path(f"/dev/shm/cntr-soaked-{os.getpid()}")
        path.touch()
        try:
            wait_until(
                lambda: {line.split()[0] for line in soak.Traces(container, "soaked").left(before)} >= SEEN, "all three"
            )
        finally:
            path.unlink()
            os.close(held)
            process.kill()
            process.wait()
