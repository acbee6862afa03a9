"""Podman's containers that do not run, of root and of each user: containers/storage has the layers, config.json the rest."""

from __future__ import annotations

import os

from cntr.engines import containers_storage, store
from cntr.errors import printable
from cntr.images import ImageError, podman_store, spec, stores
from cntr.images.blueprint import Blueprint

LOG_LINES = 10


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The stopped container of that name or id prefix in every store. Raises ImageError, Refused."""
    return [blueprint(row) for row in _rows(lambda row: store.answers_to(name, row.id, row.names), running=running)]


def stopped(deadline: float) -> list[Blueprint]:
    """All containers that do not run, with no more than name and image."""
    return [_named(row) for row in _rows(lambda row: True)]


def _rows(
    wanted: Callable[[containers_storage.Known], bool], *, running: bool = False
) -> list[containers_storage.Known]:
    rows = containers_storage.known_containers(wanted)
    return [row for row in rows if not row.is_foreign() and (running or not containers_storage.running(row))]


def _named(row: containers_storage.Known) -> Blueprint:
    made = Blueprint("podman", row.names[0] if row.names else row.id[:12])
    made.id, made.image, made.owner, made.state = row.id, row.image, row.store.owner, "exited"
    return made


def blueprint(row: containers_storage.Known) -> Blueprint:
    """From the store; what podman itself knows beyond it (exit status) where its store is ours to ask."""
    made, one = _named(row), row.store
    chain = podman_store.layer_chain(one, row.layer)
    base = f"{one.graphroot}/{podman_store.DRIVER}"
    made.upper, made.work = f"{base}/{row.layer}/diff", f"{base}/{row.layer}/work"
    made.lower = [f"{base}/{layer['id']}/diff" for layer in reversed(chain[:-1])]
    made.overlay = {"userxattr": ""} if one.owner else {"metacopy": "on"}
    for path in [made.upper, *made.lower]:
        if not os.path.isdir(path):
            raise ImageError(f"{made.label()}: layer {printable(path)} is not there", "its store is damaged")
    directory = f"{one.graphroot}/{row.directory}/{row.id}/userdata"
    asked = _ask(row) if one.owner in (0, os.geteuid()) else {}
    try:
        text = store.read(f"{directory}/config.json", owner=one.owner, limit=8 << 20)
    except FileNotFoundError:
        _created(made, asked)
    else:
        spec.take(made, stores.documents(stores.parse(text, f"{made.label()}: config.json")))
    state = spec.mapping(asked.get("State"))
    made.state = str(state.get("Status") or made.state)
    if made.state != "created" and isinstance(state.get("ExitCode"), int):
        made.status = state["ExitCode"]
    made.oom_killed = state.get("OOMKilled") is True
    made.log = lambda: _log(f"{directory}/ctr.log", one.owner)
    made.check = lambda: containers_storage.running(row) is not None
    return made


def _created(made: Blueprint, asked: dict[str, Any]) -> None:
    """It has never been started, so there is no config.json; `podman inspect` says what Docker's would."""
    from cntr.images import docker_stopped

    if not asked:
        raise ImageError(
            f"{made.label()}: it has never been started, and its configuration is its owner's", "as that user: `cntr …`"
        )
    like = docker_stopped.blueprint(
        "", made.owner, asked | {"GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": made.upper}}}
    )
    for name in (
        "entrypoint",
        "argv",
        "environment",
        "directory",
        "user",
        "hostname",
        "mounts",
        "capabilities",
        "limits",
    ):
        setattr(made, name, getattr(like, name))
    made.read_only, made.no_new_privs, made.privileged = like.read_only, like.no_new_privs, like.privileged
    bounding = spec.capability_mask(asked.get("BoundingCaps"))
    made.capabilities = bounding or made.capabilities


def _ask(row: containers_storage.Known) -> dict[str, Any]:
    """What `podman container inspect` says; {} where it can't be asked."""
    try:
        text = stores.run(["podman", "container", "inspect", row.id], 10)
        rows = stores.parse(text, "podman inspect")
    except ImageError:
        return {}
    return spec.mapping(rows[0]) if isinstance(rows, list) and rows else {}


def _log(path: str, owner: int) -> list[str]:
    """The last lines of conmon's k8s-file log: time, stream, F or P, text."""
    try:
        lines = store.read(path, owner=owner).splitlines()[-LOG_LINES:]
    except OSError:
        return []
    return [printable(line.split(" ", 3)[-1][:400]) for line in lines]


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any
