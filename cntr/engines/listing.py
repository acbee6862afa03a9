"""The lists of all engines' containers for ``cntr ps``, and of the engines for ``cntr doctor``."""

from __future__ import annotations

import os
import time

from cntr.engines import plugins, store
from cntr.engines.answer import Answer
from cntr.engines.asking import ask, distinct
from cntr.engines.container import Container
from cntr.engines.registry import Entry
from cntr.linux.host import VIEW

LIST_SECONDS = 2.0  # a slower engine is reported as not answering


def running(seconds: float = LIST_SECONDS) -> tuple[list[Container], list[Answer]]:
    """(the running containers by engine and name, each process once; each present engine's answer)."""
    with VIEW:
        present = [entry for entry in plugins.entries() if entry.present()]
        answers = ask(present, None, time.monotonic() + seconds)
    found = distinct([container for answer in answers for container in answer.containers])
    return sorted(found, key=lambda container: (container.engine, container.name)), answers


def shown_name(container: Container) -> str:
    """The name to show; for a container that has only a long id, a prefix of it."""
    nameless = container.name == container.id and store.is_id_prefix(container.id[:64]) and len(container.id) >= 32
    return container.id[:12] if nameless else container.name


class Finding:
    """One line for the doctor: the engine, ``answers``, ``refuses`` or ``not here``, and details."""

    __slots__ = ("engine", "found", "state")

    def __init__(self, engine: str, state: str, found: str) -> None:
        self.engine, self.state, self.found = engine, state, found


def findings(seconds: float = LIST_SECONDS) -> list[Finding]:
    """The findings for each engine, asked as by ``cntr ps``."""
    known = plugins.entries()
    answers = {answer.entry.name: answer for answer in running(seconds)[1] if not answer.owner}
    with VIEW:
        return [_finding(entry, answers.get(entry.name)) for entry in known]


def _finding(entry: Entry, answer: Answer | None) -> Finding:
    traces = [trace for trace in entry.traces if Entry("", "", "", trace).present()]
    if answer is None:
        looked = ", ".join(entry.traces[:3]) + (" …" if len(entry.traces) > 3 else "")
        return Finding(entry.name, "not here", f"{entry.summary}: none of {looked}")
    where = f"{entry.summary} at {', '.join(traces)}"
    if answer.refused:
        return Finding(entry.name, "refuses", f"{where}: {answer.refused}")
    count = len(answer.containers)
    said = "no container runs" if not count else "1 container runs" if count == 1 else f"{count} containers run"
    users = sorted({store.owner_name(container.owner) for container in answer.containers if container.owner})
    rootless = f", rootless ones of {', '.join(users)}" if users else ""
    note = "; other users' containers need root" if os.geteuid() else ""
    return Finding(entry.name, "answers", f"{where}: {said}{rootless}{note}")
