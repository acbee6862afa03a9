"""Buildah's working containers: a running ``buildah run`` by its process, otherwise the mounted root directory alone."""

from __future__ import annotations

import os

from cntr.engines import containers_storage, evidence, store, trust
from cntr.engines.container import Container, NotRunning
from cntr.linux import procfs

TMP = "/var/tmp"
ANCESTORS = 3  # buildah run, buildah-chroot-runtime, buildah-chroot-exec


def find(name: str, deadline: float) -> list[Container]:
    """The working container of that name or id prefix, of root and of each user. Raises NotRunning if it is not
    mounted.
    """
    known = [row for row in _known() if store.answers_to(name, row.id, row.names)]
    found = [container for row in known if (container := _container(row))]
    if known and not found:
        raise NotRunning(f"buildah has {known[0].names[0]}, but it is neither running nor mounted: `buildah mount` it")
    return found


def containers(deadline: float) -> list[Container]:
    """All working containers that run or are mounted."""
    return [container for row in _known() if (container := _container(row))]


def _known() -> list[containers_storage.Known]:
    rows = containers_storage.known_containers(lambda row: bool(row.names))
    return [
        row for row in rows if os.path.exists(f"{row.store.graphroot}/{row.directory}/{row.id}/userdata/buildah.json")
    ]


def _container(known: containers_storage.Known) -> Container | None:
    owner = known.store.owner
    for pid in _candidates():
        # The root mount of a program in the working container is the overlay of its layer.
        start = evidence.marked(pid, known.layer, owner=owner) if known.layer else 0
        if start:
            return Container(
                "buildah", known.names[0], pid, id=known.id, image=known.image, owner=owner, start_time=start
            )
    driver = known.directory.removesuffix("-containers")
    merged = f"{known.store.graphroot}/{driver}/{known.layer}/merged"
    if owner or not known.layer or not os.path.ismount(merged):
        return None  # a user's mounts are in the mount namespace of `buildah unshare`
    return Container("buildah", known.names[0], 0, id=known.id, image=known.image, state="rootfs", rootfs=merged)


def _candidates() -> list[int]:
    """The pids recorded by ``buildah run``, and the children of its chroot isolation."""
    monitors = [
        pid for name in ("buildah-chroot-exec", "buildah-oci-runtime") for pid, _ in evidence.processes_named(name)
    ]
    found = [
        pid
        for monitor in monitors
        if _is_heard(monitor)
        for pid in evidence.children(monitor)
        if pid not in monitors  # a monitor may be another one's child, and is not the program
    ]
    for name in trust.some_names(TMP, "buildah"):
        if trust.accepts(trust.owner_or_anybody(f"{TMP}/{name}")):
            try:
                found.append(int(store.read(f"{TMP}/{name}/pid", limit=32)))
            except (OSError, ValueError):
                continue
    return found


def _is_heard(monitor: int) -> bool:
    """Whether to believe a monitor: its own credentials count, or those of the ``buildah run`` above it.

    In chroot isolation the monitor has dropped the capabilities that distinguish root's monitors from processes with
    the same title.
    """
    for _ in range(ANCESTORS):
        if trust.accepts(evidence.speaker(monitor)):
            return True
        try:
            monitor = procfs.parent_pid(procfs.read(f"/proc/{monitor}/stat"))
        except OSError:
            return False
    return False
