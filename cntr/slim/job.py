"""The splitting of one image: the request, the results so far, and what every part of the walk needs."""

from __future__ import annotations

import os
import time

from cntr.errors import CntrError, printable
from cntr.linux.numbers import UNAME
from cntr.progress import Progress
from cntr.slim.exercise import Exercise
from cntr.slim.report import Report
from cntr.slim.rules import Choices
from cntr.slim.runs import MACHINES, RunOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from cntr.slim.leftovers import Guard
    from cntr.slim.runs import Running
    from cntr.slim.sources import Source


class Request:
    """The user's options."""

    def __init__(self, text: str) -> None:
        """text: TARGET."""
        self.text = text
        self.output = ""
        self.tag = ""
        self.load = False
        self.fat = ""
        self.accesses = ""
        self.watch = False
        self.recorder = "auto"
        self.verify = "all"
        self.compress = "gzip"
        self.layers = 1
        self.explain: list[str] = []
        self.report = ""
        self.exercise = Exercise()
        self.options = RunOptions()
        self.choices = Choices()


class Job:
    """The splitting of one image."""

    def __init__(self, request: Request, source: Source, guard: Guard, say: Callable[[str], None]) -> None:
        self.request, self.source, self.guard, self.say = request, source, guard, say
        self.report = Report(source.image)
        self.begin = time.monotonic()

    def step(self, words: str) -> None:
        """Print progress, with the seconds so far."""
        seconds = time.monotonic() - self.begin
        if Progress.events:
            Progress.events("step", {"seconds": round(seconds, 1), "text": words})
        else:
            self.say(f"{seconds:6.1f} s  {words}")


def exercise(job: Job, running: Running, idle: Callable[[], float]) -> float:
    """Run the exercise; Ctrl-C ends it regularly. Returns the seconds to the first answer."""
    try:
        return job.request.exercise.run(running, job.request.options.timeout, idle, job.step)
    except KeyboardInterrupt:
        job.step("Ctrl-C: the recording ends here")
        return 0.0


def publish(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: completely or not at all."""
    temporary = f"{path}.part"
    try:
        with open(temporary, "wb") as stream:
            write(stream)
        os.replace(temporary, path)
    except OSError as error:
        raise CntrError(f"{printable(path)}: {error.strerror}", "is the disk full?") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def configuration(source: Source, layers: int = 1) -> dict[str, object]:
    """The configuration of the slim image: the original one, with a line of history for each of its layers."""
    config = {key: value for key, value in source.image.config.items() if key not in ("rootfs", "history")}
    config.setdefault("architecture", MACHINES.get(UNAME, UNAME))
    config.setdefault("os", "linux")
    created = str(config.get("created") or "1970-01-01T00:00:00Z")
    config["created"] = created
    line = {"created": created, "created_by": "cntr slim", "comment": printable(source.image.reference)}
    config["history"] = [line] * layers
    return config


def slim_name(reference: str) -> str:
    """The default name of the slim image: the image's name, with -slim appended to the tag."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    base, _, tag = last.partition(":")
    if len(base) == 64 or not base:
        return "slim:latest"
    return f"{head}{slash}{base}:{tag or 'latest'}-slim"
