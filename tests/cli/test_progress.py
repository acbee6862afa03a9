"""Progress of long operations: a line on a terminal, nothing in a pipe, events for a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cntr import progress
from tests.nest import busybox
from tests.nest.tty import Terminal

ENVIRONMENT = {"PYTHONPATH": busybox.REPOSITORY}
MOVING = """
import time
from cntr import progress
progress.QUIET_SECONDS = 0
one = progress.Progress("copying: ")
one.size = 1 << 20
for _ in range(3):
    one.moved(1 << 18)
    one.next = one.next if one.next == float("inf") else 0
one.clear()
print("end")
"""
WAITING = """
import time, types
from cntr.engines import asking
from cntr.engines.registry import Entry
asking.QUIET_SECONDS = 0.1
slow = types.SimpleNamespace(BLOCKING=True, containers=lambda deadline: time.sleep(0.6) or [])
entry = Entry("slowpoke", "", "")
Entry.load = lambda self: slow
(answer,) = asking.ask([entry], None, time.monotonic() + 5)
print("answered", answer.refused == "")
"""
UNPACKING = """
import io, os, sys, tarfile, tempfile
from cntr import progress
from cntr.images import Limits, unpack, unpacked
progress.QUIET_SECONDS = 0
stream = io.BytesIO()
with tarfile.open(fileobj=stream, mode="w") as tar:
    for name in "ab":
        info = tarfile.TarInfo(name)
        info.size = 3 << 20
        tar.addfile(info, io.BytesIO(bytes(range(256)) * (3 << 12)))
stream.seek(0)
with tempfile.TemporaryDirectory() as place, unpacked.Unpacked("image:big") as result:
    unpack.apply(stream, os.open(place, os.O_RDONLY), "x", Limits(), result)
print("whole", result.files)
"""


@pytest.mark.parametrize(
    ("code", "line", "last"),
    [
        (MOVING, r"copying: \[######\.+\] 25 %, 256\.0 KiB of 1\.0 MiB, ", "end"),
        (WAITING, "waiting for slowpoke", "answered True"),
        (UNPACKING, r"unpacking image:big: \d\.\d MiB, ", "whole 2"),
    ],
)
def test_a_line_on_a_terminal_that_is_taken_back_and_silence_in_a_pipe(code, line, last):
    with Terminal(sys.executable, "-c", code, env=ENVIRONMENT) as terminal:
        terminal.wait_for(line)
        terminal.wait_for(f"\r\x1b\\[K{last}\r\n")
        assert terminal.process.wait(10) == 0
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{last}\n", "")


@pytest.mark.parametrize(
    ("code", "first"),
    [
        (WAITING, {"event": "waiting", "text": "waiting for slowpoke"}),
        (UNPACKING, {"event": "progress", "what": "unpacking image:big", "size": 0}),
    ],
)
def test_events_if_a_program_has_asked_for_json(code, first):
    setup = (
        "from cntr.cli import commands, main\nfrom cntr.progress import Progress\nProgress.events = commands.event\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", setup + code],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[0].items() >= first.items()
    assert done.stdout


def test_the_line_is_no_longer_than_the_terminal_is_wide():
    with Terminal(sys.executable, "-c", MOVING.replace("copying", "c" * 200), env=ENVIRONMENT) as terminal:
        assert len(terminal.wait_for(r"\x1b\[K(c+)").group(1)) == 79
        terminal.wait_for("end")


def test_numbers():
    assert [progress.human(count) for count in (0, 1023, 1 << 20, 3 << 40)] == ["0 B", "1023 B", "1.0 MiB", "3.0 TiB"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a hand-made container")
def test_cp_tells_a_program_in_json(tmp_path):
    with busybox.BusyboxContainer("told") as container:
        (tmp_path / "d").mkdir()
        (tmp_path / "d/file").write_bytes(b"x" * 5000)
        os.mkfifo(tmp_path / "d/fifo")
        done = busybox.run("cp", "--json", str(tmp_path / "d"), f"{container.pid}:/d")
        assert (done.returncode, done.stdout) == (1, "")
        events = [json.loads(line) for line in done.stderr.splitlines()]
        assert {"event": "problem", "path": f"{tmp_path}/d/fifo", "text": "a FIFO: not copied"} in events
        assert events[-1]["event"] == "done"
        assert events[-1]["bytes"] >= 5000
        assert events[-1]["problems"] == 1
        done = busybox.run("cp", "--json", f"{container.pid}:/d/file", "/dev/stdout")
        assert (done.returncode, done.stdout) == (0, "x" * 5000)
        assert json.loads(done.stderr)["event"] == "done"
