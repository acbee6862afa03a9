"""``nox -s bench -- slim IMAGE --http PORT``: the cost of recording: a container's first answer with and without the
recorder, alternating.

IMAGE is one of Docker's, as docker:REF. Two times: from the start of the container's first process, when recording
starts to cost something, and from the command, with all preparation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from cntr.linux import procfs
from cntr.slim import sources
from cntr.slim.exercise import Exercise, Http
from cntr.slim.leftovers import Guard
from cntr.slim.record import Recorder
from cntr.slim.runs import RunOptions


def first_answer(source: sources.Source, guard: Guard, probe: Http, recorder: Recorder | None) -> tuple[float, float]:
    """Seconds to the first answer: from the process's start, and from the command."""
    assert source.engine is not None
    exercise = Exercise()
    exercise.http, exercise.crawl = [probe], False
    begin = time.monotonic()
    running = source.engine.start(source.image.id, RunOptions(), guard, recorder.arm if recorder else None)
    try:
        exercise.run(running, 60.0, lambda: 0.0, lambda words: None)
        ticks = procfs.start_time(procfs.read(f"/proc/{running.pid}/stat"))
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return age, time.monotonic() - begin
    finally:
        running.stop()


def main() -> None:
    """Run rounds of both, and print the ratios."""
    parser = argparse.ArgumentParser(prog="nox -s bench -- slim")
    parser.add_argument("image")
    parser.add_argument("--http", default="80")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "recorded": []}
    with Guard() as guard:
        source = sources.find(options.image, guard)
        try:
            for _ in range(options.rounds):
                times["plain"].append(first_answer(source, guard, Http(options.http), None))
                recorder = Recorder()
                try:
                    times["recorded"].append(first_answer(source, guard, Http(options.http), recorder))
                finally:
                    recorder.close()
        finally:
            source.close()
    for number, what in enumerate(("from the process' start", "from the command")):
        plain, recorded = ([row[number] for row in times[name]] for name in ("plain", "recorded"))
        print(
            f"{what:24s} plain {statistics.median(plain):.3f} s, recorded {statistics.median(recorded):.3f} s: "
            f"{statistics.median(recorded) / statistics.median(plain):.2f} (best of each: {min(recorded) / min(plain):.2f})"
        )


if __name__ == "__main__":
    main()
