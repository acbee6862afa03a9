"""containerd: the tasks of all its namespaces, by the files of its shims; names given by nerdctl.

The runc shim writes ``<state>/io.containerd.runtime.v2.task/NAMESPACE/ID/init.pid``. A shim whose containers are not
processes of this host (Kata's) writes none, and names itself in ``shim-binary-path``.
"""

from __future__ import annotations

import os

from cntr.engines import evidence, store
from cntr.engines.container import Container, Refused

TASKS = "io.containerd.runtime.v2.task"
STATES = (
    "/run/containerd",
    "/run/docker/containerd/daemon",
    "/run/k3s/containerd",
    "/run/k0s/containerd",
    "/var/snap/microk8s/common/run/containerd",
)


class Task:
    """A container's directory: its state directory, namespace and id."""

    __slots__ = ("id", "namespace", "path")

    def __init__(self, path: str, namespace: str, id: str) -> None:
        self.path, self.namespace, self.id = path, namespace, id

    def answers_to(self, name: str, ids: list[tuple[str, str]]) -> bool:
        """Whether NAME is its id, NAMESPACE/ID, a prefix of its id, or a nerdctl name (its id is in IDS)."""
        return (
            name in (self.id, f"{self.namespace}/{self.id}")
            or (store.is_id_prefix(name) and self.id.startswith(name))
            or (self.namespace, self.id) in ids
        )


def find(name: str, deadline: float) -> list[Container]:
    """The container of that id, NAMESPACE/ID, id prefix, or nerdctl name."""
    ids = nerdctl_ids(name)
    found = [container for task in tasks() if task.answers_to(name, ids) and (container := _running(task))]
    if len(found) == 1 and ids:
        found[0].name = name
    return found


def containers(deadline: float) -> list[Container]:
    """All running containers of all namespaces, without the sandboxes of pods, which only hold their namespaces."""
    named = {pair: name for (_, name), pair in nerdctl_names().items()}
    found = []
    for task in tasks():
        container = None if _is_sandbox(task) else _running(task)
        if container:
            container.name = named.get((task.namespace, task.id)) or container.name
            found.append(container)
    return found


def tasks() -> list[Task]:
    """The directories of all tasks. Raises Refused if there are some and none can be listed."""
    found, refused = [], ""
    for state in store.roots("containerd", *STATES):
        try:
            for namespace in store.listdir(f"{state}/{TASKS}"):
                directory = f"{state}/{TASKS}/{namespace}"
                found += [Task(f"{directory}/{id}", namespace, id) for id in store.listdir(directory)]
        except OSError as error:
            refused = f"{state}: {error.strerror}"
    if refused and not found:
        raise Refused(refused)
    return found


def started(task: Task) -> tuple[int, int, str]:
    """(pid, start time, state) of a task; (0, 0, "") if it does not run, (0, 0, "sandboxed") if it is not on this host."""
    try:
        pid = int(store.read(f"{task.path}/init.pid", limit=32))
    except FileNotFoundError:
        return (0, 0, "sandboxed") if "kata" in _shim(task) else (0, 0, "")
    except (OSError, ValueError):
        return 0, 0, ""
    # In a pod the shim has the sandbox's id, so the container's own id must be in the cgroup or the mounts.
    start = evidence.marked(pid, task.id)
    if not start:
        return 0, 0, ""
    return pid, start, "sandboxed" if evidence.sandbox(pid) else evidence.state(pid)


def _running(task: Task) -> Container | None:
    pid, start, state = started(task)
    found = Container("containerd", task.id, pid, id=task.id, state=state, start_time=start) if state else None
    if found:
        found.spec = f"{task.path}/config.json"
    return found


def _is_sandbox(task: Task) -> bool:
    if task.namespace != "k8s.io":
        return False
    try:
        return '"io.kubernetes.cri.container-type":"sandbox"' in store.read(f"{task.path}/config.json")
    except OSError:
        return False


def _shim(task: Task) -> str:
    try:
        return store.read(f"{task.path}/shim-binary-path", limit=4096)
    except OSError:
        return ""


def nerdctl_ids(name: str) -> list[tuple[str, str]]:
    """The (namespace, id) pairs with the nerdctl name NAME, or NAMESPACE/NAME."""
    namespace, slash, last = name.rpartition("/")
    if not store.is_component(last) or (slash and not store.is_component(namespace)):
        return []
    return [pair for (where, called), pair in nerdctl_names().items() if called == last and namespace in ("", where)]


def nerdctl_names() -> dict[tuple[str, str], tuple[str, str]]:
    """(namespace, name) → (namespace, id): ``/var/lib/nerdctl/HASH/names/NAMESPACE/NAME`` holds the id."""
    found = {}
    for root in store.roots("nerdctl", "/var/lib/nerdctl"):
        for address in store.listdir(root):
            for namespace in store.listdir(f"{root}/{address}/names"):
                directory = f"{root}/{address}/names/{namespace}"
                for name in store.listdir(directory):
                    try:
                        found[namespace, name] = (
                            namespace,
                            store.read(os.path.join(directory, name), limit=256).strip(),
                        )
                    except OSError:
                        continue
    return found
