"""Kubernetes pods: ``k8s:NAMESPACE/POD/CONTAINER`` and its short forms, over containerd's CRI plugin or CRI-O.

containerd keeps each container's OCI config.json, whose annotations name pod and container. CRI-O keeps its containers
in containers/storage, under names of the form k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
"""

from __future__ import annotations

from cntr.engines import containerd, containers_storage, evidence, store
from cntr.engines.container import Container, Refused

CRI = "io.kubernetes.cri."


class Pod:
    """A container of a pod by its Kubernetes names: namespace, pod, container; and its image."""

    __slots__ = ("container", "image", "namespace", "pod")

    def __init__(self, namespace: str, pod: str, container: str, image: str) -> None:
        self.namespace, self.pod, self.container, self.image = namespace, pod, container, image

    def name(self) -> str:
        """``NAMESPACE/POD/CONTAINER``."""
        return f"{self.namespace}/{self.pod}/{self.container}"

    def answers_to(self, name: str) -> bool:
        """Match POD, POD/CONTAINER, NAMESPACE/POD, NAMESPACE/POD/CONTAINER. POD may be a prefix: pod names end in
        random letters.
        """
        words = name.split("/")
        if len(words) == 1:
            return bool(name) and self.pod.startswith(name)
        if len(words) == 2:
            first, second = words
            if first in ("pod", "pods") and second and self.pod.startswith(second):
                return True  # as kubectl names one
            return (first == self.namespace and bool(second) and self.pod.startswith(second)) or (
                bool(first) and self.pod.startswith(first) and second == self.container
            )
        if len(words) == 3:
            namespace, pod, container = words
            return (
                namespace == self.namespace and bool(pod) and self.pod.startswith(pod) and container == self.container
            )
        return False


def find(name: str, deadline: float) -> list[Container]:
    """The containers of pods that match NAME, or a container id. An exact pod name goes before a prefix."""
    named = [(pod, found) for pod, found in _all() if pod.answers_to(name) or store.answers_to(name, found.id, [])]
    exact = [(pod, found) for pod, found in named if pod.pod in name.split("/")]
    return [found for _, found in exact or named]


def containers(deadline: float) -> list[Container]:
    """All running containers of pods, without the sandboxes, which only hold namespaces."""
    return [found for _, found in _all()]


def _all() -> list[tuple[Pod, Container]]:
    found, refused = [], None
    for source in (_containerd, _crio):
        try:
            found += source()
        except Refused as error:
            refused = error
    if refused and not found:
        raise refused
    return found


def _containerd() -> list[tuple[Pod, Container]]:
    found = []
    for task in containerd.tasks():
        if task.namespace != "k8s.io":
            continue
        try:
            annotations = store.load(f"{task.path}/config.json").get("annotations") or {}
            if annotations.get(f"{CRI}container-type") != "container":
                continue
            pod = Pod(
                str(annotations[f"{CRI}sandbox-namespace"]),
                str(annotations[f"{CRI}sandbox-name"]),
                str(annotations[f"{CRI}container-name"]),
                str(annotations.get(f"{CRI}image-name") or ""),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being created or removed, or by containerd before 1.5, which has no names there
        pid, start, state = containerd.started(task)
        if state:
            found.append((pod, container(pod, task.id, pid, start, state)))
            found[-1][1].spec = f"{task.path}/config.json"
    return found


def _crio() -> list[tuple[Pod, Container]]:
    found = []
    for known in containers_storage.known_containers(lambda row: any(name.startswith("k8s_") for name in row.names)):
        pod = _parse(next(name for name in known.names if name.startswith("k8s_")), known.image)
        pid = known.pid() if pod else 0
        start = evidence.marked(pid, known.id, owner=known.store.owner) if pid else 0
        if pod and start:
            state = "sandboxed" if evidence.sandbox(pid) else evidence.state(pid)
            found.append((pod, container(pod, known.id, pid, start, state)))
    return found


def _parse(name: str, image: str) -> Pod | None:
    """The names in k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT (Kubernetes names contain no underscore); None for a
    sandbox.
    """
    words = name.split("_")
    if len(words) != 6 or words[1] in ("", "POD"):
        return None
    return Pod(words[3], words[2], words[1], image)


def container(pod: Pod, id: str, pid: int, start: int, state: str) -> Container:
    """The Container of a pod's container whose process is known."""
    return Container("k8s", pod.name(), pid, id=id, image=pod.image, state=state, start_time=start)
