"""Name → pid: the only room that knows a container engine.

Each engine is one small module with these functions, loaded only where one of its traces (a socket, a directory) exists:

    find(name, deadline) -> list[Container]             what answers to NAME: a name, an id, a unique id prefix
    containers(deadline) -> list[Container]             all running containers
    find_by_process(name, deadline) -> list[Container]  optional: what only a walk over all processes finds. It is asked
                                                        when no engine's ``find`` knew the name: it costs 10 µs a process

``deadline`` is a time.monotonic() value. A module raises Refused(why) when the engine is there but will not answer, and
returns [] when it does not know the name. A module whose calls can block (a socket) says ``BLOCKING = True`` and is asked
in a thread of its own. Third parties add a module by the entry point group ``cntr.engines``; its TRACES attribute names
its traces (docs/engines.md has an example).
"""

from __future__ import annotations

import os
import sys
import time

from cntr.errors import AmbiguousTarget, CntrError, TargetNotFound, printable
from cntr.linux import procfs

ASK_SECONDS = 0.8  # an unknown name is answered within a second
NAMED_SECONDS = 10.0  # with the engine named by the user, a slow one is waited for
LATE = ("no answer in time", "timed out")  # the words for both ways to be late: here, and of a socket


class Refused(Exception):
    """The engine is there but did not answer: why, in the engine-free words of one line."""


class NotRunning(Refused):
    """The engine has a container of that name, but no process of it runs: one line that says so."""


class Container:
    """A running container as its engine knows it.

    start_time: field 22 of /proc/PID/stat when PID was seen to be this container's process, 0 where unknown;
    state: running, paused, sandboxed (its processes are not this host's) or rootfs (no process, only files);
    rootfs: the directory of those files, as the host sees it; owner: the uid of a rootless engine's user.
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

    A trace that starts with ``$`` names an environment variable, one with ``~`` is in the caller's home. ``summary``: what
    ``cntr doctor`` calls it; ``aliases``: other prefixes for it.
    """

    __slots__ = ("aliases", "module", "name", "summary", "traces")

    def __init__(self, name: str, module: str, summary: str, *traces: str, aliases: tuple[str, ...] = ()) -> None:
        """Keep the row."""
        self.name, self.module, self.summary, self.traces, self.aliases = name, module, summary, traces, aliases

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


_TASKS = "io.containerd.runtime.v2.task"

# In the order in which `cntr ps` names a process that several know: Docker's containers are containerd's and runc's too.
REGISTRY: tuple[Entry, ...] = (
    Entry(
        *("docker", "cntr.engines.docker", "Docker", "/run/docker.sock", "/run/user/*/docker.sock"),
        *("$DOCKER_HOST", "$DOCKER_CONTEXT", "~/.docker/contexts"),
    ),
    Entry(
        "podman", "cntr.engines.podman", "Podman", "$CONTAINERS_STORAGE_CONF", "/usr/bin/podman", "/var/lib/containers"
    ),
    Entry(
        *("k8s", "cntr.engines.kubernetes", "Kubernetes pods (containerd's CRI, CRI-O)"),
        *(
            f"/run/containerd/{_TASKS}/k8s.io",
            f"/run/k3s/containerd/{_TASKS}/k8s.io",
            f"/run/k0s/containerd/{_TASKS}/k8s.io",
        ),
        *(f"/var/snap/microk8s/common/run/containerd/{_TASKS}/k8s.io", "/run/crio", "$CNTR_CONTAINERD_ROOT"),
        aliases=("kubernetes", "cri", "crio"),
    ),
    Entry(
        *("containerd", "cntr.engines.containerd", "containerd (ctr, nerdctl)"),
        *(f"/run/containerd/{_TASKS}", f"/run/k3s/containerd/{_TASKS}", f"/run/k0s/containerd/{_TASKS}"),
        *(f"/var/snap/microk8s/common/run/containerd/{_TASKS}", "$CNTR_CONTAINERD_ROOT"),
        *("/run/containerd/containerd.sock", "$CONTAINERD_ADDRESS"),
        aliases=("nerdctl", "ctr"),
    ),
    Entry(
        *("lxc", "cntr.engines.lxc", "LXC, LXD, Incus", "/usr/bin/lxc-start", "/var/lib/lxc"),
        *("$LXD_DIR", "/var/lib/lxd", "/var/snap/lxd/common/lxd", "/usr/bin/lxd", "/usr/sbin/lxd"),
        *("$INCUS_DIR", "/var/lib/incus", "/usr/bin/incusd", "/usr/libexec/incus"),
        aliases=("lxd", "incus"),
    ),
    Entry("nspawn", "cntr.engines.nspawn", "systemd-nspawn", "/usr/bin/systemd-nspawn", "/run/systemd/machines"),
    Entry(
        "apptainer",
        "cntr.engines.apptainer",
        "Apptainer",
        *("/usr/bin/apptainer", "/usr/bin/singularity"),
        *("/usr/local/bin/apptainer", "/usr/local/bin/singularity", "$APPTAINER_CONFIGDIR"),
        aliases=("singularity",),
    ),
    Entry("rkt", "cntr.engines.rkt", "rkt", "/var/lib/rkt", "$CNTR_RKT_ROOT"),
    Entry("sysbox", "cntr.engines.sysbox", "Sysbox", "/run/sysbox-runc", "$CNTR_SYSBOX_ROOT"),
    Entry("buildah", "cntr.engines.buildah", "Buildah", "/usr/bin/buildah", "$CONTAINERS_STORAGE_CONF"),
    Entry("runc", "cntr.engines.runc", "runc", "$CNTR_RUNC_ROOT", "/run/runc", "/run/user/*/runc"),
    Entry("crun", "cntr.engines.crun", "crun", "$CNTR_CRUN_ROOT", "/run/crun", "/run/user/*/crun"),
    Entry(
        *("gvisor", "cntr.engines.sandboxed", "gVisor, Kata Containers, Firecracker and other virtual machines"),
        *("/run/runsc", "/usr/bin/runsc", "$CNTR_RUNSC_ROOT", "/dev/kvm"),
        aliases=("kata", "firecracker", "qemu"),
    ),
)

PREFIXES_WITHOUT_ENGINE = ("pid", "unit", "command")


def _trace_exists(trace: str) -> bool:
    if trace.startswith("$"):
        return bool(os.environ.get(trace[1:]))
    if trace.startswith("~"):
        return os.path.exists(os.environ.get("HOME", "/root") + trace[1:])
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
                    text = procfs.read(f"{path}/{directory}/entry_points.txt")
                except OSError:
                    continue
                if "[cntr.engines]" in text:
                    extra += _declared(text)
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

    __slots__ = ("containers", "entry", "refused", "stopped")

    def __init__(self, entry: Entry) -> None:
        """Nothing heard yet."""
        self.entry, self.refused, self.stopped = entry, LATE[0], False
        self.containers: list[Container] = []


def ask(present: list[Entry], name: str | None, deadline: float, method: str = "find") -> list[Answer]:
    """Ask each engine for NAME (None: all containers), all at once; who does not answer by the deadline has refused."""
    import _thread  # threading costs 3 ms of imports, and all that is needed is a lock to wait on

    from cntr.engines import evidence

    evidence.forget()
    answers, waiting = [], []
    for entry in present:
        answer = Answer(entry)
        answers.append(answer)
        if not getattr(entry.load(), "BLOCKING", False):
            _ask_one(answer, name, deadline, method)
            continue
        done = _thread.allocate_lock()
        done.acquire()
        waiting.append(done)
        _thread.start_new_thread(_ask_one, (answer, name, deadline, method, done))
    for done in waiting:
        done.acquire(timeout=max(0.0, deadline - time.monotonic()))
    return answers


def _ask_one(answer: Answer, name: str | None, deadline: float, method: str, done: object = None) -> None:
    try:
        module = answer.entry.load()
        if name is None:
            answer.containers = module.containers(deadline)
        else:
            question = getattr(module, method, None)
            answer.containers = question(name, deadline) if question else []
        answer.refused = ""
    except Refused as error:
        answer.refused, answer.stopped = str(error), isinstance(error, NotRunning)
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
        shown = printable(target[:60])
        raise TargetNotFound(f"not a container name: {shown!r}", "name a container, a pid, or engine:name")
    prefix, colon, rest = target.partition(":")
    if target.isascii() and target.isdecimal() and len(target) < 8:  # pids end at 1 << 22; ids may be all digits too
        prefix, colon, rest = "pid", ":", target
    if colon and prefix in PREFIXES_WITHOUT_ENGINE:
        from cntr.engines import process

        return process.resolve(prefix, rest)
    known = REGISTRY  # looking for what others have added takes longer than asking Docker
    named = _called(prefix, known) if colon and rest else []
    if not named:
        known = entries()
        named = _called(prefix, known) if colon and rest else []
    if named:
        return _only(target, rest, prefix, named, known, time.monotonic() + NAMED_SECONDS)
    present = [entry for entry in known if entry.present()]
    return _only(target, target, "", present, known, time.monotonic() + ASK_SECONDS)


def _called(prefix: str, known: tuple[Entry, ...]) -> list[Entry]:
    return [entry for entry in known if prefix in (entry.name, *entry.aliases)]


def _only(
    target: str, name: str, prefix: str, asked: list[Entry], known: tuple[Entry, ...], deadline: float
) -> Container:
    answers = ask(asked, name, deadline)
    found = [container for answer in answers for container in answer.containers]
    if not found:
        later = ask(asked, name, deadline, "find_by_process")
        found = [container for answer in later for container in answer.containers]
        answers += [answer for answer in later if answer.stopped]
    if not found and not any(answer.stopped for answer in answers):
        found = _by_command(answers, [entry.name for entry in (asked if prefix else known)], name, deadline)
    # What is meant exactly goes before what merely begins so.
    exact = [container for container in found if name in (container.name, container.id)]
    own = [container for container in exact or found if container.engine == prefix]
    found = distinct(own or exact or found)
    if len(found) == 1:
        return found[0]
    if not found:
        raise _not_found(target, answers, [entry.name for entry in known if entry not in asked] if not prefix else [])
    listed = ", ".join(f"{c.label()} (pid {c.pid}, {printable(c.id[:12])})" for c in found[:8])
    listed += f" and {len(found) - 8} more" if len(found) > 8 else ""
    shown = printable(target[:200])
    raise AmbiguousTarget(
        f"{shown}: {len(found)} containers answer to this name: {listed}", "say engine:name, or an id"
    )


def _by_command(answers: list[Answer], names: list[str], name: str, deadline: float) -> list[Container]:
    """What the engines' own commands know, asked last of all; who refuses is written down in ANSWERS."""
    from cntr.engines import fallback

    found, refused = fallback.find(name, names, deadline)
    for answer in answers:
        answer.refused = answer.refused or refused.get(answer.entry.name, "")
    return found


def distinct(found: list[Container]) -> list[Container]:
    """FOUND without the repetitions: a process that two engines know is the first one's container."""
    return list({(c.pid, "" if c.pid else c.rootfs or c.label()): c for c in reversed(found)}.values())[::-1]


def _not_found(target: str, answers: list[Answer], absent: list[str]) -> TargetNotFound:
    """The error that says who was asked, who was not there, and who refused and why."""
    shown = printable(target[:200])
    stopped = [printable(answer.refused) for answer in answers if answer.stopped]
    if stopped:
        hint = "start it first; a container that has ended has no process to join"
        return TargetNotFound(f"{shown}: {'; '.join(stopped)}", hint)
    refused = [f"{answer.entry.name} ({printable(answer.refused)})" for answer in answers if answer.refused]
    said = "; ".join(
        f"{words}: {', '.join(names)}"
        for words, names in (
            ("asked", [answer.entry.name for answer in answers if not answer.refused]),
            ("refused", refused),
            ("not on this machine", absent),
        )
        if names
    )
    hint = "`cntr ps` lists what runs; a stopped container has no process to join"
    if refused and os.geteuid() != 0:
        hint = "an engine refused: try with sudo"
    elif slow := [answer.entry.name for answer in answers if answer.refused in LATE]:
        hint = f"a slow engine is waited for when it is named: {slow[0]}:{shown}; `cntr ps` lists what runs"
    return TargetNotFound(f"{shown}: no running container of that name ({said})", hint)


SANDBOX_HINTS = {
    "gvisor": "gVisor runs it in a kernel of its own: use `runsc exec`, or run cntr inside",
    "kata": "it is a virtual machine: run cntr inside the guest (`kata-runtime exec`)",
    "firecracker": "it is a virtual machine: run cntr inside the guest, by ssh or its serial console",
}


def verify(container: Container, *, runs_its_own: bool = False) -> None:
    """Refuse a container without processes of this host, in words that say what to do instead.

    runs_its_own: its own programs are to be run (``exec``), so a mere root directory is refused too.
    """
    if container.state == "sandboxed":
        hint = SANDBOX_HINTS.get(container.engine, "run cntr inside the guest")
        if container.rootfs:
            hint += f"; its files are at {container.rootfs}"
        raise CntrError(
            f"{container.label()}: its processes run inside a sandbox (a VM or a user-space kernel), not on this host",
            hint,
        )
    if container.state == "rootfs" and runs_its_own:
        raise CntrError(
            f"{container.label()}: no process runs in it, there is only its root directory {container.rootfs}",
            "`cntr attach` shows it the host's tools; its own programs would run as the host's root, unconfined",
        )
    if container.start_time:
        from cntr.engines import evidence

        now = evidence.start_time(container.pid)
        if not now:
            raise TargetNotFound(f"{container.label()}: its process {container.pid} is gone", "is it still running?")
        if now != container.start_time:
            raise TargetNotFound(
                f"{container.label()}: pid {container.pid} belongs to another process now", "the container has stopped"
            )
