"""``python -m tests.engines.toolbox PYZ SCRIPT``: a Docker daemon, containers, and cntr's one file in toolbox containers beside them.

The host here is a pid namespace with this process as pid 1, since a toolbox uses pid 1's root, and that of the real pid
1 may be inaccessible. Prints a list of [name, status, stdout, stderr] as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cntr.linux import syscalls
from testkit.engines.rigs_cli import Docker
from testkit.engines.toolbox import PRIVILEGED, USR, image
from tests.nest import filtered

OLDER = """
import os, sys
sys.path.insert(0, "/cntr.pyz")
from cntr.linux import seccomp
seccomp.install(bytes.fromhex(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-IS", "/cntr.pyz", *sys.argv[2:]])
"""


def run(docker: Docker, pyz: str, flags: list[str], words: list[str]) -> tuple[int, str, str]:
    """Run cntr WORDS in a new toolbox container with FLAGS. A kernel version among FLAGS limits the system calls
    (tests.nest.filtered).
    """
    older = [flag for flag in flags if flag in filtered.FIRST_MISSING]
    cntr = ["-c", OLDER, filtered.program(older[0]).hex()] if older else ["/cntr.pyz"]
    flags = [flag for flag in flags if flag not in older]
    mounts = ["-v", f"{pyz}:/cntr.pyz:ro", "-e", f"DOCKER_HOST={docker.settings['DOCKER_HOST']}", *USR]
    environment = ["-e", "PATH=/usr/bin:/bin", "--network", "none"]
    command = [
        "run",
        "--rm",
        *mounts,
        *environment,
        *flags,
        "toolbox:1",
        "/usr/bin/python3",
        "-IS",
        *cntr,
        *words,
    ]
    done = subprocess.run(
        [*docker.cli, *command], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout, done.stderr


def main() -> None:
    pyz, cases = sys.argv[1], json.loads(sys.argv[2])
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    try:
        docker = Docker()
    except pytest.skip.Exception as reason:
        sys.exit(f"SKIP {reason}")
    try:
        image(docker)
        with docker.container("busybox", name="web"):
            docker.command(
                "create", "--name", "stopped", "--network", "none", "-e", "WORD=kept", "slim:1", "/bin/false"
            )
            results = []
            for flags, words in cases:
                flags = [flag for one in flags for flag in (PRIVILEGED if one == "--privileged" else [one])]
                results.append(run(docker, pyz, flags, words))
            docker.command("rm", "stopped")
        print(json.dumps(results))
    finally:
        docker.stop()


if __name__ == "__main__":
    main()
