"""Buildah's idle working containers: containers/storage has the layers, buildah.json the current configuration."""

from __future__ import annotations

import os

from cntr.engines import containers_storage, evidence, store
from cntr.images import podman_stopped, spec
from cntr.images.blueprint import Blueprint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = "userdata/buildah.json"


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The working container of that name or id prefix. Raises ImageError, Refused."""
    return [blueprint(row) for row in _rows(lambda row: store.answers_to(name, row.id, row.names))]


def stopped(deadline: float) -> list[Blueprint]:
    """All, with name and image only."""
    return [_named(row) for row in _rows(lambda row: True)]


def _rows(wanted: Callable[[containers_storage.Known], bool]) -> list[containers_storage.Known]:
    rows = {row.id: row for row in containers_storage.known_containers(wanted)}.values()
    return [row for row in rows if os.path.exists(_record(row))]


def _record(row: containers_storage.Known) -> str:
    return f"{row.store.graphroot}/{row.directory}/{row.id}/{RECORD}"


def _named(row: containers_storage.Known) -> Blueprint:
    made = Blueprint("buildah", row.names[0] if row.names else row.id[:12])
    made.id, made.image, made.owner, made.state = row.id, row.image, row.store.owner, "working"
    return made


def blueprint(row: containers_storage.Known) -> Blueprint:
    """Build it from the store. Raises ImageError, OSError."""
    made = _named(row)
    podman_stopped.take_layers(made, row)
    record = spec.mapping(store.parse(store.read(_record(row), owner=row.store.owner, limit=8 << 20)))
    made.take_config(spec.mapping(spec.mapping(record.get("ociv1")).get("config")))
    made.hostname = made.name[:64]
    made.check = lambda: _in_use(row)
    return made


def _in_use(row: containers_storage.Known) -> bool:
    """Whether it is mounted or used by `buildah run`: then its layer is part of a mounted overlay."""
    merged = f"{row.store.graphroot}/{row.directory.removesuffix('-containers')}/{row.layer}/merged"
    monitors = evidence.processes_named("buildah-chroot-exec", "buildah-oci-runtime", "buildah-oci-runt")
    return os.path.ismount(merged) or any(
        evidence.marked(pid, row.layer) for one, _ in monitors for pid in evidence.children(one)
    )
