"""The tools' side has FUSE mounts whose server has died, or never answers: they cost nobody the session."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.nest.busybox import REPOSITORY, BusyboxContainer

#: In a mount namespace of its own: PLACE is a new file system with the mounts KINDS beside a directory; then cntr runs.
MACHINE = """
import os, signal, sys
from pathlib import Path
from cntr.linux import syscalls
from tests.attacks import stalling

place, kinds = sys.argv[1], sys.argv[2].split(",")
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.mount("none", place, "tmpfs", 0)
os.mkdir(f"{place}/alive")
Path(f"{place}/alive/file").write_text("here\\n")
os.symlink("alive", f"{place}/link")
Path(f"{place}/plain").touch()
before = set()
for kind in kinds:
    stalling.mount(f"{place}/{kind}", stalling.ALL if kind == "hung" else frozenset())
    children = set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    (server,) = children - before
    if kind == "dead":
        os.kill(int(server), signal.SIGKILL)
        os.waitpid(int(server), 0)
    else:
        before = children
os.execv(sys.executable, [sys.executable, "-m", "cntr", *sys.argv[3:]])
"""


@pytest.mark.parametrize("transport", ["mount", "fuse"])
@pytest.mark.parametrize("tools", ["host", "host:all"])
@pytest.mark.parametrize("place", ["/var/lib", "/mnt"])
def test_what_does_not_answer_costs_nobody_the_session(transport: str, place: str, tools: str) -> None:
    """Below /var/lib they are beside the base directory, which is made in a stand-in of /var/lib here."""
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no /dev/fuse here")
    base = "/var/lib/base/x"
    # To CntrFS every name is a question to whoever is mounted there: of all of the host a hung one is waited for.
    kinds = "dead" if (transport, tools, place) == ("fuse", "host:all", "/var/lib") else "dead,hung"
    script = f"cat {place}/alive/file {place}/link/file {place}/plain {base}/etc/passwd"
    with BusyboxContainer(files={"/etc/passwd": "root:x:0:0::/:/bin/sh\n"}) as container:
        words = ["attach", str(container.pid), "--transport", transport, "--tools", tools, "--force", "--"]
        done = subprocess.run(
            [sys.executable, "-c", MACHINE, place, kinds, *words, "sh", "-c", script],
            env={**os.environ, "PYTHONPATH": REPOSITORY, "CNTR_BASE_DIR": base},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "here\nhere\nroot:x:0:0::/:/bin/sh\n"), done
