"""containerd's containers whose task has ended, and those of pods: by ``ctr``."""

from __future__ import annotations

import time

from cntr.engines import containerd, evidence, store
from cntr.errors import printable
from cntr.images import ImageError, spec, stores
from cntr.images.blueprint import Blueprint

NAMESPACES = 64
CRI = "io.kubernetes.cri."


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The container of that id, NAMESPACE/ID, id prefix or nerdctl name, in every namespace. Raises ImageError."""
    known = containerd.nerdctl_ids(name)
    found = []
    for namespace, id in _all(deadline, running=running):
        if (
            (namespace, id) in known
            or name in (id, f"{namespace}/{id}")
            or (store.is_id_prefix(name) and id.startswith(name))
        ):
            found.append(blueprint(namespace, id))
    return found


def stopped(deadline: float) -> list[Blueprint]:
    """All containers without a task, with no more than id and image."""
    found = []
    for namespace, id in _all(deadline):
        made = Blueprint("containerd", id)
        made.id, made.state, made.image = id, "exited", _image(namespace, id)
        found.append(made)
    return found


def _all(deadline: float, *, running: bool = False) -> list[tuple[str, str]]:
    """(namespace, id) of every container that does not run. Docker's own are Docker's to tell."""
    seconds = max(1.0, deadline - time.monotonic())
    tasks = {(task.namespace, task.id) for task in containerd.tasks() if containerd.started(task)[2]}
    found = []
    for namespace in stores.run(["ctr", "namespaces", "ls", "-q"], seconds).split()[:NAMESPACES]:
        if namespace == "moby" or not store.is_component(namespace):
            continue
        ids = stores.run(["ctr", "-n", namespace, "containers", "ls", "-q"], seconds).split()
        found += [(namespace, id) for id in ids if store.is_component(id) and (running or (namespace, id) not in tasks)]
    return found


def _info(namespace: str, id: str) -> dict[str, Any]:
    text = stores.run(["ctr", "-n", namespace, "containers", "info", id], 10)
    return stores.documents(stores.parse(text, "ctr containers info"))


def _image(namespace: str, id: str) -> str:
    try:
        return str(_info(namespace, id).get("Image") or "")
    except ImageError:
        return ""


def blueprint(namespace: str, id: str) -> Blueprint:
    """From containerd's own record: the runtime configuration it made, and the snapshot."""
    info = _info(namespace, id)
    made = Blueprint("containerd", id)
    made.id, made.state, made.image = id, "exited", str(info.get("Image") or "")
    runtime = stores.documents(info.get("Spec"))
    spec.take(made, runtime)
    take_snapshot(made, namespace, str(info.get("Snapshotter") or "overlayfs"), str(info.get("SnapshotKey") or id))
    annotations = spec.mapping(runtime.get("annotations"))
    sandbox = str(annotations.get(f"{CRI}sandbox-id") or "")
    if sandbox and annotations.get(f"{CRI}container-type") == "container":
        made.engine = "k8s"
        names = [
            str(annotations.get(CRI + key) or "") for key in ("sandbox-namespace", "sandbox-name", "container-name")
        ]
        made.name = "/".join(names)
        _join_sandbox(made, sandbox, runtime)
    made.check = lambda: any(task.id == id and containerd.started(task)[2] for task in containerd.tasks())
    return made


def _join_sandbox(made: Blueprint, sandbox: str, runtime: dict[str, Any]) -> None:
    """The pod's namespaces are those of its sandbox's process while that runs; the numbers in the record may be another's by now."""
    task = next((task for task in containerd.tasks() if task.id == sandbox), None)
    pid = containerd.started(task)[0] if task else 0
    if not pid or not evidence.marked(pid, sandbox):
        return
    for row in spec.mapping(runtime.get("linux")).get("namespaces") or ():
        kind = spec.NAMESPACES.get(str(spec.mapping(row).get("type")))
        if kind and spec.mapping(row).get("path"):
            made.join[kind] = f"/proc/{pid}/ns/{kind}"


def take_snapshot(made: Blueprint, namespace: str, snapshotter: str, key: str) -> None:
    """The layers of a snapshot, by the mount command that ctr prints: mount -t overlay overlay TARGET -o lowerdir=…,… Raises ImageError."""
    text = stores.run(["ctr", "-n", namespace, "snapshots", "--snapshotter", snapshotter, "mounts", "/mnt", key], 10)
    words = text.split()
    if words[:3] != ["mount", "-t", "overlay"] or "-o" not in words:
        raise ImageError(
            f"{made.label()}: snapshot {printable(key)} of {printable(snapshotter)}: {printable(text[:200])}",
            "overlayfs is known",
        )
    options = dict(option.partition("=")[::2] for option in words[words.index("-o") + 1].split(","))
    made.lower = [path for path in options.get("lowerdir", "").split(":") if path]
    made.upper, made.work = options.get("upperdir", ""), options.get("workdir", "")


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
