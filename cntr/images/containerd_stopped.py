"""containerd's containers whose task has ended, and those of pods, through ``ctr``."""

from __future__ import annotations

import binascii
import os
import time

from cntr.engines import containerd, evidence, kubernetes, store
from cntr.errors import printable
from cntr.images import ImageError, answers, containerd_store, spec
from cntr.images.blueprint import Blueprint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = 64
CRI, PODS = kubernetes.CRI, "k8s.io"


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The container of that id, NAMESPACE/ID, id prefix or nerdctl name in any namespace, or of a pod. Raises
    ImageError.
    """
    known = containerd.nerdctl_ids(name)
    rows = _all(deadline, running=running)
    found = [
        (namespace, id)
        for namespace, id in rows
        if (namespace, id) in known
        or name in (id, f"{namespace}/{id}")
        or (store.is_id_prefix(name) and id.startswith(name))
    ]
    if found:
        return [blueprint(namespace, _info(namespace, id)) for namespace, id in found]
    return [
        blueprint(PODS, info) for info in _of_pod(name, [id for namespace, id in rows if namespace == PODS], deadline)
    ]


def _of_pod(name: str, ids: list[str], deadline: float) -> list[dict[str, Any]]:
    """The latest instance of each container that a pod's NAME means. An exact pod name goes before a prefix."""
    latest: dict[str, tuple[kubernetes.Pod, dict[str, Any]]] = {}
    for id in ids:
        if time.monotonic() > deadline:
            raise ImageError(
                f"{printable(name)}: {len(ids)} containers of pods, too many to ask in time", "name it by its id"
            )
        info = _info(PODS, id)
        pod = _pod(info)
        if pod and pod.answers_to(name):
            before = latest.get(pod.name())
            if not before or str(info.get("CreatedAt")) > str(before[1].get("CreatedAt")):
                latest[pod.name()] = pod, info
    exact = [info for pod, info in latest.values() if pod.pod in name.split("/")]
    return exact or [info for _, info in latest.values()]


def _pod(info: dict[str, Any]) -> kubernetes.Pod | None:
    """The container's pod names; None for a sandbox, and for a container outside pods."""
    annotations = spec.mapping(spec.mapping(info.get("Spec")).get("annotations"))
    if annotations.get(f"{CRI}container-type") != "container":
        return None
    names = [str(annotations.get(CRI + key) or "") for key in ("sandbox-namespace", "sandbox-name", "container-name")]
    return kubernetes.Pod(names[0], names[1], names[2], str(info.get("Image") or ""))


def stopped(deadline: float) -> list[Blueprint]:
    """All containers without a task, with name, id and image only."""
    found = []
    for namespace, id in _all(deadline):
        try:
            info = _info(namespace, id)
        except ImageError:
            continue  # it is gone
        pod = _pod(info)
        if namespace == PODS and not pod:
            continue  # a sandbox
        found.append(_named(info, pod))
    return found


def _named(info: dict[str, Any], pod: kubernetes.Pod | None) -> Blueprint:
    id = str(info.get("ID") or "")
    made = Blueprint("k8s" if pod else "containerd", pod.name() if pod else id)
    made.id, made.state, made.image = id, "exited", str(info.get("Image") or "")
    return made


def _all(deadline: float, *, running: bool = False) -> list[tuple[str, str]]:
    """(namespace, id) of every container that does not run, without Docker's."""
    seconds = max(1.0, deadline - time.monotonic())
    tasks = {(task.namespace, task.id) for task in containerd.tasks() if containerd.started(task)[2]}
    found = []
    for namespace in answers.run(containerd_store.ctr("namespaces", "ls", "-q"), seconds).split()[:NAMESPACES]:
        if namespace == "moby" or not store.is_component(namespace):
            continue
        ids = answers.run(containerd_store.ctr("-n", namespace, "containers", "ls", "-q"), seconds).split()
        found += [(namespace, id) for id in ids if store.is_component(id) and (running or (namespace, id) not in tasks)]
    return found


def _info(namespace: str, id: str) -> dict[str, Any]:
    text = answers.run(containerd_store.ctr("-n", namespace, "containers", "info", id), 10)
    return answers.documents(answers.parse(text, "ctr containers info"))


def blueprint(namespace: str, info: dict[str, Any]) -> Blueprint:
    """Build it from containerd's record: the runtime configuration, and the snapshot."""
    pod = _pod(info)
    made = _named(info, pod)
    runtime = answers.documents(info.get("Spec"))
    spec.take(made, runtime)
    take_snapshot(made, namespace, str(info.get("Snapshotter") or "overlayfs"), str(info.get("SnapshotKey") or made.id))
    if pod:
        _join_sandbox(made, str(spec.mapping(runtime.get("annotations")).get(f"{CRI}sandbox-id") or ""), runtime)
        _ending(made, info)
    made.check = lambda: any(task.id == made.id and containerd.started(task)[2] for task in containerd.tasks())
    return made


def _ending(made: Blueprint, info: dict[str, Any]) -> None:
    """How a pod's container ended, and its log. The CRI plugin keeps a status file beside its mounts, and the log's
    path in its metadata.
    """
    source = next((one.source for one in made.mounts if one.destination == "/etc/hostname"), "")
    root = source.partition("/sandboxes/")[0]
    try:
        status = store.load(f"{root}/containers/{made.id}/status")
        made.status, made.oom_killed = int(status["ExitCode"]), status.get("Reason") == "OOMKilled"
        made.state = "exited" if status.get("FinishedAt") else "created"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # another version's format
    try:
        extension = spec.mapping(spec.mapping(info.get("Extensions")).get("io.cri-containerd.container.metadata"))
        metadata = store.parse(os.fsdecode(binascii.a2b_base64(str(extension.get("value") or "e30="))))
        path = str(spec.mapping(metadata["Metadata"]).get("LogPath") or "")
    except (ValueError, KeyError, TypeError):
        path = ""
    if path:
        made.log = lambda: answers.log_lines(path, 0)


def _join_sandbox(made: Blueprint, sandbox: str, runtime: dict[str, Any]) -> None:
    """Join the namespaces of the pod's sandbox while that runs. The pids in the record may have been reused."""
    task = next((task for task in containerd.tasks() if task.id == sandbox), None)
    pid = containerd.started(task)[0] if task else 0
    if not pid or not evidence.marked(pid, sandbox):
        return
    for row in spec.mapping(runtime.get("linux")).get("namespaces") or ():
        kind = spec.NAMESPACES.get(str(spec.mapping(row).get("type")))
        if kind and spec.mapping(row).get("path"):
            made.join[kind] = f"/proc/{pid}/ns/{kind}"


def take_snapshot(made: Blueprint, namespace: str, snapshotter: str, key: str, *, socket: str = "") -> None:
    """Set the layers of a snapshot, from the mount command that ctr prints: mount -t overlay overlay TARGET -o
    lowerdir=…,…

    Raises ImageError.
    """
    text = answers.run(
        containerd_store.ctr("-n", namespace, "snapshots", "--snapshotter", snapshotter, "mounts", "/mnt", key), 10
    )
    words = text.split()
    if words[:3] != ["mount", "-t", "overlay"] or "-o" not in words:
        raise ImageError(
            f"{made.label()}: snapshot {printable(key)} of {printable(snapshotter)}: {printable(text[:200])}",
            "overlayfs is known",
        )
    options = dict(option.partition("=")[::2] for option in words[words.index("-o") + 1].split(","))
    made.lower = [path for path in options.get("lowerdir", "").split(":") if path]
    made.upper, made.work = options.get("upperdir", ""), options.get("workdir", "")
