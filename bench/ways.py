"""Time to run ``true`` by each way to start cntr: installed, one file, over ssh, from a toolbox container:
``nox -s bench -- ways``.

The far machine is a real sshd on this one; the toolbox is a container of a Docker daemon of the benchmark's own. Since a
toolbox works in the root of pid 1, the benchmark runs in a pid namespace of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import measure
from bench.attach import ISOLATED, our_cntr
from bench.measure import Row
from cntr.remote import onefile
from testkit.container import SlimContainer

INSTALLED, ONE_FILE, ARCHIVE = "cntr attach PID", "cntr.pyz attach PID", "cntr.pyz attach PID, nothing unpacked"
SSH, FAR = "ssh far true", "cntr --host far attach PID"
HERE, TOOLBOX = "cntr.pyz attach docker:NAME", "cntr.pyz attach docker:NAME in a toolbox"
REACH = ((ONE_FILE, INSTALLED, 1.3), (FAR, SSH, 3.0))
# The shell is pid 1, and its child runs the commands: a toolbox is known by ancestors on the host, pid 1 aside.
BELOW_PID_1 = [
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    '"$@"; exit $?',
    "sh",
]


def local_rows(place: Path, pyz: str, pid: str, environment: dict[str, str]) -> list[Row]:
    """The rows without another machine: python3 in PATH is this interpreter, as for the installed cntr."""
    unpacked, none = ({**environment, "CNTR_CACHE_DIR": str(place / name)} for name in ("cache", "none"))
    (place / "cache").mkdir(mode=0o700)
    (place / "none").mkdir(mode=0o755)  # open to others, thus not used
    return [
        Row(ISOLATED, [os.path.realpath(sys.executable), "-ISc", "pass"], environment),
        Row(INSTALLED, [our_cntr(), "attach", pid, "--", "true"], environment),
        Row(ONE_FILE, [pyz, "attach", pid, "--", "true"], unpacked),
        Row(ARCHIVE, [pyz, "attach", pid, "--", "true"], none),
    ]


def far_rows(stack: ExitStack, pid: str) -> list[Row]:
    """By ssh; none if ssh or its server is missing."""
    import pytest

    from testkit.far import far_machine

    try:
        far = stack.enter_context(far_machine())
    except pytest.skip.Exception as reason:
        print(f"bench: no rows by ssh: {reason}")
        return []
    environment = {name: value for name, value in far.environment.items() if not name.startswith("PYTHON")}
    return [
        Row(SSH, ["ssh", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "root@far", "true"], environment),
        Row(FAR, [our_cntr(), "--host", "root@far", "attach", pid, "--", "true"], environment),
    ]


def toolbox_rows(stack: ExitStack, pyz: str, environment: dict[str, str]) -> list[Row]:
    """From a toolbox container, entered by nsenter(1), and without it; none if Docker does not run here."""
    import pytest

    from testkit.engines import toolbox
    from testkit.engines.rigs_cli import Docker

    try:
        docker = Docker()
    except pytest.skip.Exception as reason:
        print(f"bench: no rows of a toolbox: {reason}")
        return []
    stack.callback(docker.stop)
    toolbox.image(docker)
    web = stack.enter_context(docker.container("scratch"))
    python = "/usr/bin/python3"  # both have this one
    settings = ["-e", f"DOCKER_HOST={docker.settings['DOCKER_HOST']}", "-v", f"{pyz}:/cntr.pyz:ro", "--network", "none"]
    flags = [*toolbox.PRIVILEGED, "--pid=host", *settings, *toolbox.USR]
    docker.command("run", "-d", "--name", "toolbox", *flags, "toolbox:1", "sleep", "100000")
    stack.callback(docker.command, "rm", "-f", "toolbox")
    box = docker.command("inspect", "-f", "{{.State.Pid}}", "toolbox").strip()
    within = {**environment, **docker.settings, "CNTR_CACHE_DIR": ""}
    words = ["attach", web.target, "--", "true"]
    return [
        Row(HERE, [python, "-IS", pyz, *words], {**within, "CNTR_CACHE_DIR": str(Path(pyz).parent / "cache")}),
        Row(TOOLBOX, ["nsenter", "-t", box, "-a", python, "-IS", "/cntr.pyz", *words], within),
    ]


def main() -> int:
    """The command line; 0 if all rows could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.ways", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, default=Path("reports/bench-ways.json"))
    options = parser.parse_args()
    if os.getppid() != 1:
        return subprocess.call([*BELOW_PID_1, sys.executable, "-m", "bench.ways", *sys.argv[1:]])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cntr-ways-")))
        pyz = str(place / "cntr.pyz")
        onefile.write(pyz)
        pid = str(stack.enter_context(SlimContainer("ways")).pid)
        rows = [
            *local_rows(place, pyz, pid, environment),
            *far_rows(stack, pid),
            *toolbox_rows(stack, pyz, environment),
        ]
        return measure.compare(
            "Time to `-- true` by each way to start cntr", rows, options.rounds, ISOLATED, REACH, options.json
        )


if __name__ == "__main__":
    sys.exit(main())
