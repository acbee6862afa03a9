"""Podman's containers that do not run, of root and of each user: containers/storage has the layers, config.json the
rest.
"""

from __future__ import annotations

import os
import stat

from cntr.engines import containers_storage, pods, store
from cntr.errors import printable
from cntr.images import ImageError, answers, docker_stopped, podman_store, spec
from cntr.images.blueprint import Blueprint, Mount, words

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
    except (FileNotFoundError, PermissionError):  # with --uidmap it belongs to the container's root
        known = pods.configuration(one, row.id, deadline)
        if known.get("spec"):
            spec.take(made, spec.mapping(known["spec"]))
            made.user = str(known.get("user") or "")
        else:
            _created(made, (inspect or ask)(row.id))
    else:
        runtime = answers.documents(answers.parse(text, f"{made.label()}: config.json"))
        spec.take(made, runtime)
        if not one.owner:
            _join(made, runtime, one)
    if inspect:
        _ending(made, {}, pods.ending(one, row.id, deadline))
    else:
        made.more = lambda: _ending(made, spec.mapping(ask(row.id).get("State")), None)
    made.log = lambda: answers.log_lines(f"{directory}/ctr.log", one.owner)
    made.check = lambda: containers_storage.running(row) is not None
    return made


def _join(made: Blueprint, runtime: dict[str, Any], own: containers_storage.Store) -> None:
    """The namespaces of another container (--network container:NAME, a pod), if it runs. The pids
    in the record may have been reused.
    """
    wanted = {}
    for row in spec.mapping(runtime.get("linux")).get("namespaces") or ():
        kind, path = spec.NAMESPACES.get(str(spec.mapping(row).get("type"))), spec.mapping(row).get("path")
        if kind and isinstance(path, str) and path.startswith("/proc/"):
            wanted[kind] = path.split("/")[2]
    if not wanted:
        return
    others = containers_storage.known_containers(lambda row: row.store.graphroot == own.graphroot)
    pids = {str(row.pid()) for row in others if str(row.pid()) in wanted.values() and containers_storage.running(row)}
    for kind, pid in wanted.items():
        if pid in pids:
            made.join[kind] = f"/proc/{pid}/ns/{kind}"
        else:
            made.faults.append(f"its {kind} namespace is another container's, which does not run")


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
        if not _may_be_there(path):
            raise ImageError(f"{made.label()}: layer {printable(path)} is not there", "its store is damaged")


def _may_be_there(path: str) -> bool:
    """Whether it is a directory, as far as the user can see: with --userns keep-id only the
    container's root may search layers.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


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
    for mount in made.mounts:
        if mount.kind == "tmpfs":  # Docker's are noexec
            mount.options = ["mode=1777", *mount.options[1:]]
    host = spec.mapping(asked.get("HostConfig"))
    maps = spec.mapping(host.get("IDMappings"))
    made.uid_map, made.gid_map = _id_map(maps.get("UidMap")), _id_map(maps.get("GidMap"))
    beside = f"{os.path.dirname(str(asked.get('HostsPath') or ''))}/.containerenv"
    if os.path.isfile(beside):
        made.mounts.append(Mount("bind", beside, "/run/.containerenv"))
    own = spec.mapping(host.get("Sysctls"))  # written by podman newer than 4.3
    made.sysctls = {str(key): str(value) for key, value in own.items()}
    made.read_only, made.no_new_privs, made.privileged = like.read_only, like.no_new_privs, like.privileged
    bounding = spec.capability_mask(asked.get("BoundingCaps"))
    made.capabilities = bounding or made.capabilities


def _id_map(value: object) -> list[tuple[int, int, int]]:
    """The rows INSIDE:OUTSIDE:COUNT."""
    rows = [tuple(map(int, row.split(":"))) for row in words(value) if row.replace(":", "").isdecimal()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


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
