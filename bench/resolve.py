"""Name → pid, per engine: cntr by files, socket or API, beside the engine's own command: ``nox -s bench -- resolve``.

cntr's rows are calls in this process (what resolving adds to an attach); those of commands are whole processes (what
asking the command would add). ``unknown name`` is the time until no started engine knows a name, including their
commands if these may know more. The last rows list 500 containers, as ``cntr ps`` does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import measure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from testkit.engines.rig import EngineContainer

# rig → the command a user would use to get the pid, with {name}
COMMANDS: dict[str, str] = {
    "docker": "docker inspect --format {{{{.State.Pid}}}} {name}",
    "podman": "podman inspect --format {{{{.State.Pid}}}} {name}",
    "podman_rootless": "podman inspect --format {{{{.State.Pid}}}} {name}",
    "containerd": "ctr task ls",
    "k8s": "ctr task ls",
    "lxc": "lxc-info -P {path} -n {name} -pH",
    "lxd": "lxc query /1.0/instances/{name}/state",
    "incus": "incus query /1.0/instances/{name}/state",
    "runc": "runc state {name}",
    "crun": "crun state {name}",
    "apptainer": "apptainer instance list --json",
}

# rig → how cntr asks; all others by state files
WAYS: dict[str, str] = {
    "docker": "API",
    "lxc": "socket",
    "lxd": "socket",
    "incus": "socket",
    "podman_rootless": "process",
}


@dataclass
class Question:
    """One way to find a pid, and its times in seconds."""

    engine: str
    way: str
    ask: Callable[[], object]
    is_ours: bool = True
    times: list[float] = field(default_factory=list)

    def once(self) -> float:
        """Ask once; return seconds."""
        begun = time.perf_counter()
        self.ask()
        return time.perf_counter() - begun


def main() -> int:
    """The command line; 0 if at least one engine could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.resolve", description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="*", default=list(COMMANDS), help=f"of {' '.join(COMMANDS)}")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, default=Path("reports/bench-resolve.json"))
    options = parser.parse_args()
    if unknown := set(options.engines) - set(COMMANDS):
        parser.error(f"no command to compare with: {' '.join(sorted(unknown))}")
    with ExitStack() as stack:
        questions = [question for name in options.engines for question in _questions(stack, name)]
        if not questions:
            raise SystemExit("bench: none of these engines runs here")
        questions.append(Question("all of these", "unknown name", _unknown))
        for number in range(options.rounds + 1):
            for question in (*questions[number % len(questions) :], *questions[: number % len(questions)]):
                took = question.once()
                if number:  # the first round fills caches
                    question.times.append(took)
    with ExitStack() as stack:
        crowds = _crowds(stack)
        for _ in range(options.rounds // 3 + 1):
            for question in crowds:
                question.times.append(question.once())
    questions += crowds
    print(_table(questions))
    rows = [{"engine": q.engine, "way": q.way, "seconds": sorted(q.times)} for q in questions]
    measure.write_json(options.json, {"machine": measure.machine(), "rows": rows})
    return 0


def _questions(stack: ExitStack, name: str) -> list[Question]:
    """The ways to ask the engine of the rig NAME; empty, with the reason printed, if it does not run here."""
    import pytest

    from cntr import engines
    from testkit.engines import rigs

    try:
        rig = rigs.RIGS[name]()
    except pytest.skip.Exception as reason:
        print(f"bench: no {name}: {reason}")
        return []
    stack.callback(rig.stop)
    container = stack.enter_context(rig.container("busybox"))
    for variable, value in rig.settings.items():  # two rigs may have state directories of the same kind
        before = os.environ.get(variable) if variable.startswith("CNTR_") else None
        os.environ[variable] = f"{before}:{value}" if before else value

    def ours() -> None:
        assert engines.resolve(container.target).pid == container.pid, container.target

    command, environment = _command(name, container)
    return [
        Question(name, f"cntr: {WAYS.get(name, 'files')}", ours),
        Question(name, COMMANDS[name].split(" ")[0], lambda: _run(command, environment), is_ours=False),
    ]


def _crowds(stack: ExitStack) -> list[Question]:
    """500 containers by the state files of three engines, over real processes."""
    from cntr.engines import listing
    from testkit.engines import crowd as many

    directory = Path(stack.enter_context(TemporaryDirectory(prefix="cntr-bench-")))
    crowd = stack.enter_context(many.processes(directory))

    def question(layout: Callable[[Path, dict[str, int]], dict[str, str]]) -> Question:
        name = layout.__name__.removesuffix("_layout")
        (directory / name).mkdir()
        settings = layout(directory / name, crowd)

        def ours() -> None:
            before = dict(os.environ)
            os.environ.update(settings)
            try:
                assert len(listing.running()[0]) >= len(crowd)
            finally:
                os.environ.clear()
                os.environ.update(before)

        return Question(f"{len(crowd)} of {name}", "cntr ps", ours)

    return [question(layout) for layout in many.LAYOUTS]


def _command(name: str, container: EngineContainer) -> tuple[list[str], Mapping[str, str]]:
    """The engine's own command, with options for the rig's private instance."""
    rig = container.rig
    words = (
        COMMANDS[name]
        .format(name=container.id if name == "k8s" else container.name, path=getattr(rig, "path", ""))
        .split(" ")
    )
    prefix = list(getattr(rig, "client", ())) or list(getattr(rig, "cli", ())) or words[:1]
    return [*prefix, *words[1:]], rig.workspace.env


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise measure.BenchFailed(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")


def _unknown() -> None:
    from cntr import engines
    from cntr.errors import TargetNotFound

    try:
        engines.resolve("no-such-container")
    except TargetNotFound:
        return
    raise measure.BenchFailed("a container named no-such-container exists")


def _table(questions: list[Question]) -> str:
    """Milliseconds: median and best of each way, and the ratio of the engine's command to cntr."""
    lines = ["engine          asked by      median ms   best ms   times cntr's median"]
    own = {q.engine: statistics.median(q.times) for q in questions if q.is_ours}
    for q in questions:
        median = statistics.median(q.times)
        ratio = f"{median / own[q.engine]:10.0f}" if not q.is_ours else ""
        lines.append(f"{q.engine:<15} {q.way:<13} {median * 1e3:9.2f} {min(q.times) * 1e3:9.2f} {ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
