"""Where an attach's time goes: the median time of each step on the way to ``true``, and of an empty Python:
``python -m bench.attach_steps --rounds 40``.

Every process of the session writes the time of each step's end to one pipe. The steps are timed from outside, by
replacing functions of cntr's in a process of our own: cntr itself has no code for it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import measure
from testkit.container import SlimContainer

REPOSITORY = str(Path(__file__).parents[1])
MARKS_FD = 199
# What runs before each mark. The last one is the caller's: the process has ended.
STEPS = {
    "python": "the interpreter starts",
    "imported": "cntr's modules are imported",
    "found": "the container: its process, /proc, namespaces",
    "prepared": "everything of the session is opened and computed",
    "forked": "fork of the monitor",
    "assembled": "the nested mount namespace",
    "launched": "launcher: namespaces, identity; fork of the reaper",
    "ended": "fork of the command, `true` itself, its end",
    "cleaned": "the monitor looks for what is left",
    "exit": "the end of the supervisor",
}
# Functions whose return is a mark.
TIMED = {
    "found": ("cntr.attach.walk", "Target.__init__"),
    "prepared": ("cntr.attach.walk", "Prepared.__init__"),
    "forked": ("cntr.attach.channel", "Channel.keep_session"),
    "assembled": ("cntr.attach.monitor", "Nest.assemble"),
    "launched": ("cntr.attach.monitor", "Monitor._start"),
    "ended": ("cntr.attach.monitor", "Monitor._report_end"),
    "cleaned": ("cntr.attach.monitor", "Monitor._end_all"),
}
PROGRAM = f"""
import os, sys, time
def mark(name):
    try:
        os.write({MARKS_FD}, b"%d %s\\n" % (time.monotonic_ns(), name.encode()))
    except OSError:
        pass
mark("python")
sys.path.insert(0, {REPOSITORY!r})
sys.argv[0] = "cntr"
from cntr.__main__ import main
from cntr.cli import attaching, main as _
from cntr.attach import walk
mark("imported")
for name, (module, path) in {TIMED!r}.items():
    owner = sys.modules[module]
    *way, last = path.split(".")
    for step in way:
        owner = getattr(owner, step)
    def timed(*words, name=name, function=getattr(owner, last), **named):
        try:
            return function(*words, **named)
        finally:
            mark(name)
    setattr(owner, last, timed)
main()
"""


def one_round(pid: int, environment: dict[str, str]) -> dict[str, float]:
    """Attach once; return milliseconds by step. Raises BenchFailed."""
    read_fd, write_fd = os.pipe()
    os.dup2(write_fd, MARKS_FD, inheritable=True)
    os.close(write_fd)
    argv = [os.path.realpath(sys.executable), "-ISc", PROGRAM, "attach", f"pid:{pid}", "--", "true"]
    begun = time.monotonic_ns()
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(MARKS_FD,), check=False
    )
    ended = time.monotonic_ns()
    os.close(MARKS_FD)
    with open(read_fd, encoding="ascii") as stream:
        marks = {name: int(at) for at, name in reversed([line.split() for line in stream])}  # the first of each name
    if done.returncode or marks.keys() != STEPS.keys() - {"exit"}:
        raise measure.BenchFailed(f"attach: exit status {done.returncode}: {done.stderr.decode()} {sorted(marks)}")
    times = [*sorted(marks.values()), ended]
    if [name for name in STEPS if name != "exit"] != sorted(marks, key=lambda name: marks[name]):
        raise measure.BenchFailed(f"the steps came in another order: {sorted(marks, key=lambda name: marks[name])}")
    return {name: (at - before) / 1e6 for name, before, at in zip(STEPS, [begun, *times[:-1]], times, strict=True)}


def table(rounds: list[dict[str, float]], empty: float) -> Iterator[str]:
    """The table's lines; empty: milliseconds of an empty Python."""
    yield "| step | ms |"
    yield "|---|---|"
    for name, what in STEPS.items():
        yield f"| {what} | {statistics.median(one[name] for one in rounds):.1f} |"
    whole = statistics.median(sum(one.values()) for one in rounds)
    yield f"| all | {whole:.1f} |"
    yield f"| an empty Python, start to end | {empty:.1f} |"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.attach_steps", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    bare = measure.Row("empty", [os.path.realpath(sys.executable), "-ISc", "pass"], environment)
    with SlimContainer("bench") as container:
        one_round(container.pid, environment)
        rounds = []
        for _ in range(options.rounds):
            rounds.append(one_round(container.pid, environment))
            bare.times.append(bare.run())
    print("\n".join(table(rounds, bare.median * 1000)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
