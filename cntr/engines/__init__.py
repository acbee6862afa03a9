"""Name → pid: the only room that knows a container engine.

Each engine is one small module with two functions, looked for only where its traces (a socket, a state directory) exist:

    find(name, deadline) -> list[Container]     the running containers that answer to NAME: a name, an id, a unique id prefix
    containers(deadline) -> list[Container]     all running containers

``deadline`` is a time.monotonic() value. A module raises Refused(why) when the engine is there but will not answer, and returns
[] when it does not know the name. A module whose calls can block (a socket) says ``BLOCKING = True`` and is asked in a thread
of its own. Third parties add a module by the entry point group ``cntr.engines``; its TRACES attribute names its traces.
"""

from __future__ import annotations

import os
import sys
import time

from cntr import procfs
from cntr.errors import AmbiguousTarget, CntrError, TargetNotFound, printable

ASK_SECONDS = 0.8  # an unknown name is answered within a second
NAMED_SECONDS = 10.0  # with the engine named by the user, a slow one is waited for


class Refused(Exception):
    """The engine is there but did not answer: why, in the engine-free words of one line."""


class NotRunning(Refused):
    """The engine has a container of that name, but no process of it runs: one line that says so."""


class Container:
    """A running container as its engine knows it.

    start_time: field 22 of /proc/PID/stat where the engine recorded it, else 0; state: running, paused, sandboxed (its
    processes are not this host's) or rootfs (no process, only files under rootfs); owner: the uid of a rootless engine's user.
    """

    __slots__ = ("engine", "id", "image", "name", "owner", "pid", "rootfs", "start_time", "state")

    def __init__(
        self,
        engine: str,
        name: str,
        pid: int,
        *,
        id: str = "",
        image: str = "",
        state: str = "running",
        owner: int = 0,
        start_time: int = 0,
        rootfs: str = "",
    ) -> None:
        """Keep the facts."""
        self.engine, self.name, self.pid, self.id, self.image = engine, name, pid, id, image
        self.state, self.owner, self.start_time, self.rootfs = state, owner, start_time, rootfs

    def label(self) -> str:
        """``engine:name``, fit for a terminal and for the command line."""
        return printable(f"{self.engine}:{self.name or self.id}")


class Entry:
    """A row of the registry: the prefix, the module, and the paths (globs) whose existence says the engine was here.

    A trace that starts with ``$`` names an environment variable. ``summary``: what ``cntr doctor`` calls it.
    """

    __slots__ = ("module", "name", "summary", "traces")

    def __init__(self, name: str, module: str, summary: str, *traces: str) -> None:
        """Keep the row."""
        self.name, self.module, self.summary, self.traces = name, module, summary, traces

    def present(self) -> bool:
        """Whether one of the traces exists."""
        return any(_trace_exists(trace) for trace in self.traces)

    def load(self) -> EngineModule:
        """Import the module."""
        __import__(self.module)
        return sys.modules[self.module]


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class EngineModule(Protocol):
        """What an engine's module offers."""

        def find(self, name: str, deadline: float) -> list[Container]:
            """The running containers that answer to NAME."""

        def containers(self, deadline: float) -> list[Container]:
            """All running containers."""


# In the order in which `cntr ps` names a process that several know: Docker's containers are runc's too.
REGISTRY: tuple[Entry, ...] = (
    Entry("docker", "cntr.engines.docker", "Docker", "$DOCKER_HOST", "/run/docker.sock", "/run/user/*/docker.sock"),
    Entry(
        "podman", "cntr.engines.podman", "Podman", "$CONTAINERS_STORAGE_CONF", "/usr/bin/podman", "/var/lib/containers"
    ),
    Entry("runc", "cntr.engines.runc", "runc", "$CNTR_RUNC_ROOT", "/run/runc", "/run/user/*/runc"),
    Entry("crun", "cntr.engines.crun", "crun", "$CNTR_CRUN_ROOT", "/run/crun", "/run/user/*/crun"),
)

PREFIXES_WITHOUT_ENGINE = ("pid", "unit", "command")


def _trace_exists(trace: str) -> bool:
    if trace.startswith("$"):
        return bool(os.environ.get(trace[1:]))
    if "*" not in trace:
        return os.path.exists(trace)
    head, _, tail = trace.partition("/*")  # one star per trace: a directory per user or namespace
    return any(os.path.exists(f"{head}/{name}{tail}") for name in _listed(head))


def entries() -> tuple[Entry, ...]:
    """The registry, and what third parties added by entry point."""
    extra = []
    # importlib.metadata costs 30 ms, glob 10: listing the directories and reading what declares anything, 1 ms at most.
    for path in dict.fromkeys([*sys.path, os.path.dirname(os.path.dirname(os.path.dirname(__file__)))]):
        for directory in _listed(path):
            if directory.endswith(".dist-info"):
                try:
                    with open(f"{path}/{directory}/entry_points.txt", "rb") as stream:
                        text = stream.read()
                except OSError:
                    continue
                if b"[cntr.engines]" in text:
                    extra += _declared(text.decode("utf-8", "replace"))
    return REGISTRY + tuple(extra)


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path or ".")
    except OSError:
        return []


def _declared(text: str) -> list[Entry]:
    section, found = "", []
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == "cntr.engines" and "=" in line:
            name, module = (part.strip() for part in line.split("=", 1))
            __import__(module)
            found.append(Entry(name, module, module, *sys.modules[module].TRACES))
    return found


class Answer:
    """What one engine said: its containers, or why it refused."""

    __slots__ = ("containers", "entry", "refused")

    def __init__(self, entry: Entry) -> None:
        """Nothing heard yet."""
        self.entry, self.refused = entry, f"no answer within {ASK_SECONDS:g} s"
        self.containers: list[Container] = []


def ask(present: list[Entry], name: str | None, deadline: float) -> list[Answer]:
    """Ask each engine for NAME (None: all containers), all at once; who does not answer by the deadline has refused."""
    import _thread  # threading costs 3 ms of imports, and all that is needed is a lock to wait on

    answers, waiting = [], []
    for entry in present:
        answer = Answer(entry)
        answers.append(answer)
        if not getattr(entry.load(), "BLOCKING", False):
            _ask_one(answer, name, deadline)
            continue
        done = _thread.allocate_lock()
        done.acquire()
        waiting.append(done)
        _thread.start_new_thread(_ask_one, (answer, name, deadline, done))
    for done in waiting:
        done.acquire(timeout=max(0.0, deadline - time.monotonic()))
    return answers


def _ask_one(answer: Answer, name: str | None, deadline: float, done: object = None) -> None:
    try:
        module = answer.entry.load()
        found = module.containers(deadline) if name is None else module.find(name, deadline)
        answer.containers, answer.refused = found, ""
    except Refused as error:
        answer.refused = str(error)
    except OSError as error:
        answer.refused = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except Exception as error:  # noqa: BLE001  one engine's bad state file must not hide the others
        answer.refused = f"unreadable state ({type(error).__name__}: {error})"
    finally:
        if done is not None:
            done.release()  # type: ignore[attr-defined]


def resolve(target: str) -> Container:
    """TARGET (see the CLI contract) → the one running container. Raises TargetNotFound, AmbiguousTarget, CntrError."""
    if not target or "\0" in target or len(target) > 4096:
        raise TargetNotFound(
            f"not a container name: {printable(target[:60])!r}", "name a container, a pid, or engine:name"
        )
    prefix, colon, rest = target.partition(":")
    if target.isascii() and target.isdecimal():
        prefix, colon, rest = "pid", ":", target
    if colon and prefix in PREFIXES_WITHOUT_ENGINE:
        from cntr.engines import process

        return process.resolve(prefix, rest)
    known = entries()
    named = [entry for entry in known if colon and entry.name == prefix]
    if named:
        return _only(target, rest, named, known, time.monotonic() + NAMED_SECONDS)
    return _only(target, target, [entry for entry in known if entry.present()], known, time.monotonic() + ASK_SECONDS)


def _only(target: str, name: str, asked: list[Entry], known: tuple[Entry, ...], deadline: float) -> Container:
    answers = ask(asked, name, deadline)
    found = [container for answer in answers for container in answer.containers]
    exact = [container for container in found if name in (container.name, container.id)]
    # Two engines, one process: one container, the first engine's.
    found = list({(c.pid, c.rootfs): c for c in reversed(exact or found)}.values())[::-1]
    if len(found) == 1:
        return found[0]
    shown = printable(target[:200])
    if found:
        listed = ", ".join(f"{c.label()} (pid {c.pid}, {printable(c.id[:12])})" for c in found[:8])
        raise AmbiguousTarget(
            f"{shown}: {len(found)} containers answer to this name: {listed}", "say engine:name, or a longer id"
        )
    refused = [f"{a.entry.name} ({printable(a.refused)})" for a in answers if a.refused]
    no = [a.entry.name for a in answers if not a.refused]
    absent = [entry.name for entry in known if entry not in asked] if len(asked) != 1 or not known else []
    said = "; ".join(
        f"{words}: {', '.join(names)}"
        for words, names in (("asked", no), ("refused", refused), ("not on this machine", absent))
        if names
    )
    hint = "`cntr ps` lists what runs; a stopped container has no process to join"
    if refused and os.geteuid() != 0:
        hint = "an engine refused: try with sudo"
    raise TargetNotFound(f"{shown}: no running container of that name ({said})", hint)


def verify(container: Container) -> None:
    """Refuse a container without processes of this host, in words that say what to do instead."""
    if container.state == "sandboxed":
        raise CntrError(
            f"{container.label()}: its processes run inside a sandbox (a VM or a user-space kernel), not on this host",
            "run cntr inside the guest",
        )
    if container.start_time and not container.rootfs:
        try:
            now = procfs.start_time(procfs.read(f"/proc/{container.pid}/stat"))
        except OSError:
            raise TargetNotFound(
                f"{container.label()}: its process {container.pid} is gone", "is it still running?"
            ) from None
        if now != container.start_time:
            raise TargetNotFound(
                f"{container.label()}: pid {container.pid} belongs to another process now", "the container has stopped"
            )
