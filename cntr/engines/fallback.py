"""Asks the engines' own commands if no file, socket or process knew the name.

The commands know what only an engine's configuration or database says: an unusual state directory, a pod's name, a
daemon behind TCP. They take tens of milliseconds (bench/resolve.py). So each runs only if some process of its engine is
not explained by its files. All run at the same time, and those that miss the deadline are killed.

A command never gets the name: it lists, and the matching is done here. Its output counts like a state file: the pid
must bear the container's mark (``evidence``). It runs without a terminal or standard input, in a session of its own,
with its standard error discarded, and only if nobody but root can have installed it.
"""

from __future__ import annotations

import os
import time

from cntr.engines import containerd, containers_storage, docker, evidence, kubernetes, pods, store, trust, unixhttp
from cntr.engines.commands import POLLIN, Invocation, trusted
from cntr.engines.container import Container, NotRunning, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    # Yields the command lines to run, is sent their outputs, returns the containers that match the name.
    Talk = Generator[list[list[str]], list[str], list[Container]]

SHIMS = ("containerd-shim-runc-v2", "containerd-shim-runc-v1", "containerd-shim")
KUBERNETES_LABELS = ("pod.namespace", "pod.name", "container.name")


class EngineCommand:
    """A row: the engine, its command, whether running it can add anything, and the generator that uses it to find a
    name.
    """

    __slots__ = ("engine", "needed", "program", "talk")

    def __init__(self, engine: str, program: str, needed: Callable[[], bool], talk: Callable[[str, str], Talk]) -> None:
        self.engine, self.program, self.needed, self.talk = engine, program, needed, talk


def _podman(program: str, name: str) -> Talk:
    """podman-ps(1). Before version 5 only podman can read where pod names are stored, a database of its own format."""
    (text,) = yield [[program, "ps", "--all", "--pod", "--no-trunc", "--format", "json"]]
    found = []
    for row in store.parse(text) or []:
        id, pod, names = str(row["Id"]), str(row.get("PodName") or ""), [str(called) for called in row["Names"]]
        called = names[0] if names else id[:12]
        in_pod = pods.answers_to(name, str(row.get("Pod") or ""), pod, called) if pod else False
        if not row["Pid"] or row.get("IsInfra") or not (in_pod or store.answers_to(name, id, names)):
            continue
        shown = f"{pod}/{called}" if in_pod else called
        found.append(containers_storage.checked("podman", shown, int(row["Pid"]), id, str(row["Image"]), os.geteuid()))
    return [container for container in found if container]


def _docker(program: str, name: str) -> Talk:
    """docker-ps(1), docker-inspect(1): a daemon on this machine that listens on TCP, with the user's TLS keys."""
    docker.check_tcp()
    (text,) = yield [[program, "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}"]]
    rows = [line.partition(" ") for line in text.splitlines()]
    ids = [id for id, _, names in rows if id.isalnum() and store.answers_to(name, id, names.split(","))]
    if not ids:
        return []
    (text,) = yield [[program, "inspect", "--type", "container", *ids]]
    return [docker.container(record, 0) for record in store.parse(text)]


def _ctr(program: str, name: str) -> Talk:
    """``ctr``: a containerd whose ``state`` directory is in an unusual place; $CONTAINERD_ADDRESS names its socket."""
    (text,) = yield [[program, "namespaces", "ls", "-q"]]
    namespaces = text.split()
    tables = yield [[program, f"--namespace={namespace}", "tasks", "ls"] for namespace in namespaces]
    ids, found = containerd.nerdctl_ids(name), []
    for namespace, table in zip(namespaces, tables):
        for line in table.splitlines()[1:]:
            id, pid, *_ = line.split()
            task = containerd.Task("", namespace, id)
            start = evidence.marked(int(pid), id) if task.answers_to(name, ids) and int(pid) else 0
            if start:
                state = "sandboxed" if evidence.sandbox(int(pid)) else evidence.state(int(pid))
                found.append(Container("containerd", id, int(pid), id=id, state=state, start_time=start))
    if not found:
        lists = yield [[program, f"--namespace={namespace}", "containers", "ls", "-q"] for namespace in namespaces]
        for namespace, text in zip(namespaces, lists):
            for id in text.split():
                if containerd.Task("", namespace, id).answers_to(name, ids):
                    raise NotRunning(
                        f"containerd has {namespace}/{id}, but it is not running: it has no task",
                        f"`ctr --namespace {namespace} tasks start --detach {id}` starts it",
                    )
    return found


def _crictl(program: str, name: str) -> Talk:
    """``crictl``: pods of a runtime whose files are elsewhere; /etc/crictl.yaml names its socket."""
    (text,) = yield [[program, "ps", "-o", "json"]]
    rows = []
    for row in store.parse(text)["containers"]:
        labels, id = row["labels"], str(row["id"])
        namespace, pod_name, container = (str(labels[f"io.kubernetes.{key}"]) for key in KUBERNETES_LABELS)
        image = str(row["image"].get("userSpecifiedImage") or row["image"]["image"])
        pod = kubernetes.Pod(namespace, pod_name, container, image)
        if id.isalnum() and (pod.answers_to(name) or store.answers_to(name, id, [])):
            rows.append((pod, id))
    texts = yield [[program, "inspect", "-o", "json", id] for _, id in rows]
    found = []
    for (pod, id), text in zip(rows, texts):
        pid = int(store.parse(text)["info"]["pid"])
        start = evidence.marked(pid, id)
        if start:
            state = "sandboxed" if evidence.sandbox(pid) else evidence.state(pid)
            found.append(kubernetes.container(pod, id, pid, start, state))
    return found


def _conmon(crio: bool) -> bool:
    """Whether this user has a running conmon: without one, no container of Podman's (CRI-O's) runs."""
    return any(
        evidence.speaker(pid) == os.geteuid() and evidence.option(arguments, "-n").startswith("k8s_") == crio
        for pid, arguments in evidence.processes_named("conmon")
    )


def _libpod() -> bool:
    """Whether a Podman monitor runs, and the store that the command would open is not one that ``pods`` reads.

    An older podman ignores the ``db.sql`` of a newer one and creates a database of its own kind beside it. The newer
    podman then uses that one, and has lost its containers.
    """
    own = next((one for one in containers_storage.stores() if one.owner == os.geteuid()), None)
    return _conmon(crio=False) and not (own and os.path.exists(f"{own.graphroot}/db.sql"))


def _shim(*namespaces: str) -> bool:
    """Whether a containerd shim runs for a container (of NAMESPACES) that is in none of the known state directories."""
    shims = {
        evidence.option(arguments, "-id")
        for _, arguments in evidence.processes_named(*SHIMS)
        if not namespaces or evidence.option(arguments, "-namespace") in namespaces
    }
    try:
        return not shims <= {task.id for task in containerd.tasks()}
    except Refused:
        return bool(shims)


def _containerd() -> bool:
    """Whether a daemon runs: ``ctr`` would wait for one. Only the daemon knows containers without a task."""
    try:
        address = os.environ.get("CONTAINERD_ADDRESS") or "/run/containerd/containerd.sock"
        path = address.removeprefix("unix://")
        if not trust.accepts(trust.owner(path)):
            return False
        unixhttp.connect(path, time.monotonic() + 0.1).close()
    except OSError:
        return False
    return True


CLIS = (
    EngineCommand("docker", "docker", docker.is_behind_local_tcp, _docker),
    EngineCommand("podman", "podman", _libpod, _podman),
    EngineCommand("k8s", "crictl", lambda: _shim("k8s.io") or _conmon(crio=True), _crictl),
    EngineCommand("containerd", "ctr", _containerd, _ctr),
)


class Dialogue:
    """The state of one engine's generator and its commands."""

    __slots__ = ("cli", "commands", "found", "refused", "running", "talk")

    def __init__(self, cli: EngineCommand, talk: Talk) -> None:
        self.cli, self.talk = cli, talk
        self.found: list[Container] = []
        self.commands: list[Invocation] = []
        self.running: list[Invocation] = []
        self.refused: Refused | None = Refused(f"the command {cli.program} did not answer in time")
        self.go_on(None)

    def go_on(self, outputs: list[str] | None) -> None:
        """Send OUTPUTS to the generator and start the commands it yields."""
        try:
            while not self.running:
                lines = next(self.talk) if outputs is None else self.talk.send(outputs)
                self.commands, outputs = [], []
                self._start(lines)
        except StopIteration as end:
            self.found, self.refused = end.value, None
        except Refused as error:
            self.refused = error
        except OSError as error:
            self.refused = Refused(f"the command {self.cli.program}: {error.strerror}")
        except Exception:  # noqa: BLE001  a command may print anything
            self.refused = Refused(f"the command {self.cli.program} did not say what it is asked for")

    def _start(self, lines: list[list[str]]) -> None:
        try:
            for line in lines:
                self.commands.append(Invocation(line))
        except BaseException:
            for command in self.commands:
                command.end()
            raise
        self.running = list(self.commands)

    def hear(self, command: Invocation) -> None:
        """Handle output or the end of COMMAND."""
        if command.read():
            return
        self.running.remove(command)
        if not self.running:
            self.go_on([each.end() for each in self.commands])

    def end(self) -> None:
        """Kill the commands that still run."""
        for command in self.commands if self.running else ():
            command.end()


def find(name: str, engines: Iterable[str], deadline: float) -> tuple[list[Container], dict[str, Refused]]:
    """(what the commands of ENGINES find under NAME before DEADLINE; engine → why its command failed)."""
    import select

    asked = set(engines)
    wanted = [(cli, path) for cli in CLIS if cli.engine in asked and cli.needed() and (path := trusted(cli.program))]
    dialogues: list[Dialogue] = []
    try:
        for cli, path in wanted:
            dialogues.append(Dialogue(cli, cli.talk(path, name)))
        while True:
            listening = {command.fd: (each, command) for each in dialogues for command in each.running}
            left = deadline - time.monotonic()
            if not listening or left <= 0:
                break
            poll = select.poll()
            for fd in listening:
                poll.register(fd, POLLIN)
            for fd, _ in poll.poll(left * 1000):
                each, command = listening[fd]
                each.hear(command)
    finally:
        for each in dialogues:
            each.end()
    found = [container for each in dialogues for container in each.found]
    return found, {each.cli.engine: each.refused for each in dialogues if each.refused}
