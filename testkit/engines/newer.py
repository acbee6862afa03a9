"""Roots of newer Debian suites, for engines that this machine's suite lacks or has too old; made once by mmdebstrap.

They are kept in $CNTR_TEST_CACHE (/var/cache/cntr-tests), about 1 GB, and take a minute each; remove the directory to
make them again. ``prefix`` is the command that runs a program of such a root in this machine's pid namespace.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

from testkit.engines import workspaces

CACHE = os.environ.get("CNTR_TEST_CACHE", "/var/cache/cntr-tests")
SUITES = {
    "trixie": "incus,docker.io,docker-cli,rootlesskit,podman,crun,runc,containerd,uidmap,fuse-overlayfs",
    "sid": "apptainer,uidmap",
}


def root(suite: str) -> str:
    """The root directory of SUITE, made if missing. Skips if that is impossible."""
    path = f"{CACHE}/{suite}"
    os.makedirs(CACHE, exist_ok=True)
    with open(f"{CACHE}/{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers, and other runs
        if os.path.exists(f"{path}/.complete"):
            return path
        if not shutil.which("mmdebstrap"):
            pytest.skip(f"needs a root of Debian {suite}; not installed: mmdebstrap (apt-get install)")
        shutil.rmtree(path, ignore_errors=True)
        # The Valid-Until date of an archive frozen for reproducible runs has passed.
        command = [
            "mmdebstrap",
            "--variant=apt",
            f"--include={SUITES[suite]}",
            "--aptopt=Acquire::Check-Valid-Until false",
        ]
        hook = 'echo "127.0.0.1 localhost" > "$1/etc/hosts"; cp /etc/localtime "$1/etc/localtime" || touch "$1/etc/localtime"'
        command += [f"--customize-hook={hook}", suite, path]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
        if done.returncode:
            last = " ".join(done.stderr.splitlines()[-3:])
            pytest.skip(f"no root of Debian {suite} ({SUITES[suite]}): mmdebstrap says: {last}")
        pathlib.Path(path, ".complete").touch()
    return path


def prefix(suite: str, *, uid: int = 0, files: Sequence[tuple[str, str]] = ()) -> tuple[str, ...]:
    """The command that runs a program in SUITE's root; FILES are (host's file, place in the root)."""
    where = root(suite)
    options = ["--hide", workspaces.UNIFIED] if os.path.ismount(workspaces.UNIFIED) else []
    for file, place in files:
        options += ["--bind", f"{file}:{place}"]
    if uid:
        options += ["--uid", str(uid)]
    here = str(pathlib.Path(__file__).parents[2])
    return ("env", f"PYTHONPATH={here}", sys.executable, "-m", "testkit.engines.otherroot", where, *options, "--")
