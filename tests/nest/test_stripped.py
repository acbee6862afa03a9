"""Processes that start in the container's pid namespace have no command line, environment or fd of the caller's."""

from __future__ import annotations

import os
import pathlib

from tests.nest.busybox import BusyboxContainer, ask, session

SECRET = "S3CR3T-OF-THE-CALLER"


def test_the_reaper_shows_neither_words_nor_variables_of_the_caller():
    """Everybody can read /proc/PID/cmdline, which would contain -e TOKEN=…."""
    with (
        BusyboxContainer() as container,
        session(str(container.pid), "-e", f"TOKEN={SECRET}", env={"CALLERS": SECRET}) as shell,
    ):
        assert ask(shell, "echo $TOKEN") == SECRET
        theirs = os.readlink(f"/proc/{container.pid}/ns/pid")
        seen = 0
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) == container.pid:
                continue
            try:
                if os.readlink(f"/proc/{name}/ns/pid") != theirs:
                    continue
                comm = pathlib.Path(f"/proc/{name}/comm").read_text().strip()
                words = pathlib.Path(f"/proc/{name}/cmdline").read_bytes()
                variables = pathlib.Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            assert SECRET.encode() not in words
            if comm == "cntr-reaper":
                seen += 1
                assert words.strip(b"\0") == b"cntr"
                assert variables.strip(b"\0") == b""
                assert len(os.listdir(f"/proc/{name}/fd")) <= 6
        assert seen == 1
