"""Time to run ``true``: cntr by pid and by Docker name beside nsenter, docker exec, other cntrs: ``nox -s bench --
attach``.

A peer is any command: ``--peer 'NAME=COMMAND'``, where {pid} and {name} stand for the slim container's pid and the
Docker container's name.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from bench import measure
from bench.measure import Row
from testkit.container import SlimContainer

ISOLATED = "python3 -ISc pass"  # the least that any Python program takes
BY_PID, BY_NAME, DOCKER_EXEC = "cntr attach PID", "cntr attach docker:NAME", "docker exec"
STOPPED = "cntr attach docker:STOPPED"
REACH = ((BY_PID, ISOLATED, 2.9), (BY_NAME, DOCKER_EXEC, 0.35), (STOPPED, BY_NAME, 2.0))


def our_cntr() -> str:
    """The console script of this environment: installed by pip, with bytecode."""
    found = shutil.which("cntr", path=os.path.dirname(sys.executable)) or shutil.which("cntr")
    if not found:
        raise SystemExit("bench: no cntr is installed: pip install .")
    return found


def other_cntr(ours: str) -> str | None:
    """Another program named cntr in PATH: the one written in Rust, as Debian packages it."""
    places = [place for place in os.environ["PATH"].split(":") if place != os.path.dirname(ours)]
    found = shutil.which("cntr", path=":".join(places))
    if found is None:
        return None
    with open(found, "rb") as stream:
        return found if stream.read(4) == b"\x7fELF" else None


def docker_rows(stack: ExitStack, cntr: str, environment: dict[str, str]) -> tuple[list[Row], str]:
    """The rows for a container in the benchmark's own Docker daemon, and its name; or why there are none."""
    import pytest

    from testkit.engines import rigs_cli

    try:
        docker = rigs_cli.Docker()
    except pytest.skip.Exception as reason:
        print(f"bench: no Docker rows: {reason}")
        return [], ""
    stack.callback(docker.stop)
    container = stack.enter_context(docker.container("scratch"))
    stocked = stack.enter_context(docker.container("busybox"))  # docker exec needs a `true` in the container
    stopped = stack.enter_context(docker.container("scratch"))
    docker.command("kill", stopped.name)
    found = {**environment, **docker.settings}
    rows = [
        Row(BY_NAME, [cntr, "attach", container.target, "--", "true"], found),
        Row(STOPPED, [cntr, "attach", stopped.target, "--", "true"], found),
        Row("cntr attach NAME", [cntr, "attach", container.name, "--", "true"], found),
        Row(DOCKER_EXEC, ["docker", "exec", stocked.name, "true"], found),
    ]
    return rows, container.name


def main() -> int:
    """The command line; 0 if all rows could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.attach", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--no-docker", action="store_true", help="only the rows without an engine")
    parser.add_argument("--json", type=Path, default=Path("reports/bench-attach.json"))
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    cntr = our_cntr()
    with ExitStack() as stack:
        slim = stack.enter_context(SlimContainer("bench"))
        pid = str(slim.pid)
        rows = [
            Row(ISOLATED, [os.path.realpath(sys.executable), "-ISc", "pass"], environment),
            Row(BY_PID, [cntr, "attach", pid, "--", "true"], environment),
            Row("cntr attach PID by FUSE", [cntr, "attach", pid, "--transport", "fuse", "--", "true"], environment),
            Row("nsenter", ["nsenter", "-t", pid, "-p", "-n", "-i", "-u", "true"], environment),
        ]
        name = ""
        if not options.no_docker:
            found, name = docker_rows(stack, cntr, environment)
            rows += found
        docker_environment = rows[-1].environment
        other = other_cntr(cntr)
        if other:
            rows.append(Row("other cntr PID", [other, "attach", pid, "--", "true"], environment))
            if name:
                rows.append(Row("other cntr NAME", [other, "attach", name, "--", "true"], docker_environment))
        for peer in options.peer:
            label, _, command = peer.partition("=")
            words = [word.replace("{pid}", pid).replace("{name}", name) for word in shlex.split(command)]
            rows.append(Row(label, words, docker_environment))
        return measure.compare("Time to `-- true`", rows, options.rounds, ISOLATED, REACH, options.json)


if __name__ == "__main__":
    sys.exit(main())
