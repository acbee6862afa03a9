"""Podman's containers that do not run, of root and of each user: containers/storage has the layers, config.json the
rest.
"""

from __future__ import annotations

import os

from cntr.engines import containers_storage, pods, store
from cntr.errors import printable
from cntr.images import ImageError, answers, docker_stopped, podman_store, spec
from cntr.images.blueprint import Blueprint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def find(
    name: str, deadline: float, *, running: bool = False, inspect: Callable[[str], dict[str, Any]] | None = None
) -> list[Blueprint]:
    """The stopped container of that name or id prefix in the stores of root, or of the calling user. Raises ImageError,
    Refused.

    inspect: replaces `podman container inspect ID`; called only for what no file tells.
    """
    rows = _rows(lambda row: store.answers_to(name, row.id, row.names), running=running)
    return [blueprint(row, deadline, inspect) for row in rows]


def stopped(deadline: float) -> list[Blueprint]:
    """All containers that do not run, with name and image only."""
    return [_named(row) for row in _rows(lambda row: True)]


def _rows(
    wanted: Callable[[containers_storage.Known], bool], *, running: bool = False
) -> list[containers_storage.Known]:
    rows = {
        row.id: row for row in containers_storage.known_containers(wanted)
    }.values()  # two settings may name the same store
    return [row for row in rows if not row.is_foreign() and (running or not containers_storage.running(row))]


def _named(row: containers_storage.Known) -> Blueprint:
    made = Blueprint("podman", row.names[0] if row.names else row.id[:12])
    made.id, made.image, made.owner = row.id, row.image, row.store.owner
    started = os.path.exists(f"{row.store.graphroot}/{row.directory}/{row.id}/userdata/config.json")
    made.state = "exited" if started else "created"
    return made


def blueprint(
    row: containers_storage.Known, deadline: float, inspect: Callable[[str], dict[str, Any]] | None = None
) -> Blueprint:
    """Build it from the store; how it ended is from podman's database (version 5), or from podman."""
    made, one = _named(row), row.store
    take_layers(made, row)
    directory = f"{one.graphroot}/{row.directory}/{row.id}/userdata"
    try:
        text = store.read(f"{directory}/config.json", owner=one.owner, limit=8 << 20)
    except FileNotFoundError:
        known = pods.configuration(one, row.id, deadline)
        if known.get("spec"):
            spec.take(made, spec.mapping(known["spec"]))
            made.user = str(known.get("user") or "")
        else:
            _created(made, (inspect or ask)(row.id))
    else:
        spec.take(made, answers.documents(answers.parse(text, f"{made.label()}: config.json")))
    if inspect:
        _ending(made, {}, pods.ending(one, row.id, deadline))
    else:
        made.more = lambda: _ending(made, spec.mapping(ask(row.id).get("State")), None)
    made.log = lambda: answers.log_lines(f"{directory}/ctr.log", one.owner)
    made.check = lambda: containers_storage.running(row) is not None
    return made


def _ending(made: Blueprint, state: dict[str, Any], known: tuple[str, int] | None) -> None:
    """How it ended, according to podman or its database."""
    made.state, status = known or (str(state.get("Status") or made.state), state.get("ExitCode"))
    if made.state != "created" and isinstance(status, int):
        made.status = status
    made.oom_killed = state.get("OOMKilled") is True if state else None


def take_layers(made: Blueprint, row: containers_storage.Known) -> None:
    """Set its own layer and those of its image. Raises ImageError."""
    one = row.store
    base = f"{one.graphroot}/{podman_store.DRIVER}"
    if row.directory == "vfs-containers":  # each is a complete copy
        made.upper = f"{one.graphroot}/vfs/dir/{row.layer}"
    else:
        chain = podman_store.layer_chain(one, row.layer)
        made.upper, made.work = f"{base}/{row.layer}/diff", f"{base}/{row.layer}/work"
        made.lower = [f"{base}/{layer['id']}/diff" for layer in reversed(chain[:-1])]
        made.overlay = {"userxattr": ""} if one.owner else {"metacopy": "on"}
        made.served = _is_served(one)
    for path in [made.upper, *made.lower]:
        if not os.path.isdir(path):
            raise ImageError(f"{made.label()}: layer {printable(path)} is not there", "its store is damaged")


def _is_served(one: containers_storage.Store) -> bool:
    """Whether fuse-overlayfs mounts this store's layers, which containers/storage records once it has tested it."""
    try:
        return (
            store.read(f"{one.graphroot}/{podman_store.DRIVER}/.has-mount-program", owner=one.owner, limit=16).strip()
            == "true"
        )
    except OSError:
        return False


def _created(made: Blueprint, asked: dict[str, Any]) -> None:
    """It was never started, so there is no config.json; `podman inspect` answers in Docker's format."""
    if not asked:
        raise ImageError(
            f"{made.label()}: it has never been started, and podman does not say what it would run",
            f"`podman container inspect {printable(made.name)}`",
        )
    like = docker_stopped.blueprint(
        "", made.owner, asked | {"GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": made.upper}}}
    )
    taken = "entrypoint argv environment directory user hostname mounts capabilities limits seccomp memory pids oom_score_adj"
    taken += " left_out apparmor shm own_group"
    for name in taken.split():
        setattr(made, name, getattr(like, name))
    own = spec.mapping(spec.mapping(asked.get("HostConfig")).get("Sysctls"))  # of podman newer than 4.3
    made.sysctls = {str(key): str(value) for key, value in own.items()}
    made.read_only, made.no_new_privs, made.privileged = like.read_only, like.no_new_privs, like.privileged
    bounding = spec.capability_mask(asked.get("BoundingCaps"))
    made.capabilities = bounding or made.capabilities


def ask(id: str) -> dict[str, Any]:
    """The answer of `podman container inspect`; {} if it cannot be run."""
    try:
        return parsed(answers.run(["podman", "container", "inspect", id], 10))
    except ImageError:
        return {}


def parsed(text: str) -> dict[str, Any]:
    """Parse the single answer of `podman container inspect`. Raises ImageError."""
    rows = answers.parse(text, "podman inspect")
    return spec.mapping(rows[0]) if isinstance(rows, list) and rows else {}
