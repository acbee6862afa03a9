"""Docker's containers that do not run, through the API."""

from __future__ import annotations

import io
import os
import time

from cntr.engines import Refused, docker, evidence, store
from cntr.errors import printable
from cntr.images import ImageError, docker_store
from cntr.images.blueprint import DEFAULT_CAPABILITIES, Blueprint, Mount
from cntr.images.spec import CAPABILITIES, capability_mask, limit, mapping, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOG_LINES = 10
OWN_SYSCTLS_REMAPPED = {"net.ipv4.ip_unprivileged_port_start": "0"}  # since Docker 20.10
OWN_SYSCTLS = {**OWN_SYSCTLS_REMAPPED, "net.ipv4.ping_group_range": "0 2147483647"}
WHOLE = {"vfs": "vfs/dir", "btrfs": "btrfs/subvolumes"}  # storage driver → its directory
OWN_CONTAINERD = "/run/docker/containerd/containerd.sock"  # of a dockerd that started containerd itself


def find(name: str, deadline: float, *, running: bool = False) -> list[Blueprint]:
    """The stopped container of that name or id, of each daemon. Raises Refused, OSError."""
    if not docker.NAME.issuperset(name) or name[:1] in ("", ".", "-", "_"):
        return []

    def ask(path: str, owner: int) -> list[Blueprint]:
        status, answer = docker._get(path, f"/containers/{name}/json", owner, deadline)
        held = status != 200 or (mapping(answer).get("State", {}).get("Pid") and not running)
        return [] if held else [blueprint(path, owner, mapping(answer))]

    return docker.each(ask)


def stopped(deadline: float) -> list[Blueprint]:
    """All containers that do not run, with name, state and image only."""
    found = []
    for path, owner in docker.endpoints():
        try:
            status, rows = docker._get(path, "/containers/json?all=1", owner, deadline)
        except (FileNotFoundError, ConnectionRefusedError, Refused):
            continue
        for row in rows if status == 200 and isinstance(rows, list) else ():
            if mapping(row).get("State") not in ("running", "paused", None):
                made = Blueprint("docker", str((row.get("Names") or ["/?"])[0]).lstrip("/"))
                made.id, made.state, made.image, made.owner = (
                    str(row["Id"]),
                    str(row["State"]),
                    str(row["Image"]),
                    owner,
                )
                found.append(made)
    return found


def blueprint(path: str, owner: int, answer: dict[str, Any]) -> Blueprint:
    """Build it from the answer of /containers/NAME/json."""
    state, host, config = (mapping(answer.get(key)) for key in ("State", "HostConfig", "Config"))
    made = Blueprint("docker", str(answer.get("Name", "")).lstrip("/"))
    made.id, made.image, made.owner = str(answer.get("Id", "")), str(config.get("Image", "")), owner
    made.state = str(state.get("Status", "exited"))
    made.take_config(config)
    made.status = int(state.get("ExitCode") or 0) if made.state != "created" else None
    made.own_group, made.shm = True, int(host.get("ShmSize") or made.shm)
    made.oom_killed, made.hostname = state.get("OOMKilled") is True, str(config.get("Hostname") or "")[:64]
    _layers(made, path, answer)
    _security(made, host)
    made.apparmor = str(answer.get("AppArmorProfile") or "")
    for row in host.get("Ulimits") or ():
        found = limit(mapping(row).get("Soft"), mapping(row).get("Hard"))
        if found:
            name = str(row.get("Name", "")).upper().removeprefix("RLIMIT_")  # Podman writes the name with the prefix
            made.limits[f"RLIMIT_{name}"] = found
    made.oom_score_adj = int(host.get("OomScoreAdj") or 0)
    made.memory, made.pids = int(host.get("Memory") or 0), int(host.get("PidsLimit") or 0)
    made.read_only = host.get("ReadonlyRootfs") is True
    made.groups = [str(one) for one in host.get("GroupAdd") or ()]
    made.own_name = str(host.get("NetworkMode")).partition(":")[0] not in ("none", "host", "container")
    if host.get("NetworkMode") == "host":
        made.share.add("net")
    else:
        made.sysctls |= OWN_SYSCTLS_REMAPPED if made.owner or made.uid_map else OWN_SYSCTLS
    made.sysctls |= {str(key): str(value) for key, value in mapping(host.get("Sysctls")).items()}
    devices = [printable(str(mapping(row).get("PathInContainer"))) for row in host.get("Devices") or ()]
    if devices:
        made.left_out.append(f"no devices but the usual ones: {', '.join(devices[:20])}")
    for row in answer.get("Mounts") or ():
        kind, source, target = (str(mapping(row).get(key) or "") for key in ("Type", "Source", "Destination"))
        if kind in ("bind", "volume") and source.startswith("/") and target.startswith("/"):
            made.mounts.append(Mount("bind", source, target, read_only=row.get("RW") is False))
    made.mounts += _memory(host)
    if made.hostname:
        made.environment.setdefault("HOSTNAME", made.hostname)
    if host.get("UTSMode") == "host":
        made.hostname = os.uname().nodename
    if config.get("Tty") is True:
        made.environment.setdefault("TERM", "xterm")
    if config.get("Domainname"):
        made.sysctls["kernel.domainname"] = str(config["Domainname"])
    for key, target in (
        ("HostnamePath", "/etc/hostname"),
        ("HostsPath", "/etc/hosts"),
        ("ResolvConfPath", "/etc/resolv.conf"),
    ):
        source = str(answer.get(key) or "")
        if source.startswith("/") and os.path.isfile(source):
            made.mounts.append(Mount("bind", source, target, read_only=made.read_only))
    if path and not (made.owner or made.uid_map):
        _join(made, path, host)
    made.log = lambda: _log(path, made.id)
    made.check = lambda: _runs(path, owner, made.id)
    return made


def _join(made: Blueprint, path: str, host: dict[str, Any]) -> None:
    """The namespaces of another container (--network, --ipc container:NAME), while that runs."""
    for kind, key in (("net", "NetworkMode"), ("ipc", "IpcMode")):
        word, _, other = str(host.get(key) or "").partition(":")
        if word != "container" or not docker.NAME.issuperset(other):
            continue
        status, answer = docker._get(path, f"/containers/{other}/json", made.owner, time.monotonic() + 5)
        pid = mapping(mapping(answer).get("State")).get("Pid") if status == 200 else 0
        if isinstance(pid, int) and pid and evidence.marked(pid, str(mapping(answer).get("Id") or other)):
            made.join[kind] = f"/proc/{pid}/ns/{kind}"
        else:
            made.faults.append(f"its {kind} namespace is that of {printable(other[:64])}, which does not run")


def _memory(host: dict[str, Any]) -> list[Mount]:
    """Its file systems in memory: --tmpfs, and --mount type=tmpfs."""
    found = {str(target): str(options).split(",") for target, options in mapping(host.get("Tmpfs")).items()}
    for row in host.get("Mounts") or ():
        row = mapping(row)
        if row.get("Type") == "tmpfs":
            wanted = mapping(row.get("TmpfsOptions"))
            size, mode = wanted.get("SizeBytes"), wanted.get("Mode")
            options = found[str(row.get("Target") or "")] = ["ro"] if row.get("ReadOnly") is True else []
            options += [f"size={size}"] if isinstance(size, int) else []
            options += [f"mode={mode:o}"] if isinstance(mode, int) and mode > 0 else []
    return [
        Mount("tmpfs", "", target, options=["noexec", *options])
        for target, options in found.items()
        if target.startswith("/")
    ]


def _snapshot(made: Blueprint, path: str, snapshotter: str) -> None:
    """Set the layers of Docker with containerd's image store. The daemon tells its containerd's socket since version
    27. Raises ImageError.
    """
    from cntr.images import containerd_stopped, containerd_store

    if made.owner:
        raise ImageError(
            f"{made.label()}: in containerd's image store, which is its user's to ask", "overlay2 is known"
        )
    try:
        status, answer = docker._get(path, "/info", made.owner, time.monotonic() + 5)
    except (OSError, Refused):
        status, answer = 0, None
    own = str(mapping(mapping(answer).get("Containerd")).get("Address") or "") if status == 200 else ""
    sockets = (containerd_store.own_socket(), own, OWN_CONTAINERD)
    socket = next((socket for socket in sockets if socket and os.path.exists(socket)), "")
    containerd_stopped.take_snapshot(made, "moby", snapshotter, made.id, socket=socket)


def _whole(made: Blueprint, path: str, driver: str) -> str:
    """The directory, for a driver that keeps a complete one for each container. Raises ImageError, OSError."""
    status, answer = docker._get(path, "/info", made.owner, time.monotonic() + 5)
    top = str(mapping(answer).get("DockerRootDir") or "") if status == 200 else ""
    try:
        record = store.read(
            f"{top}/image/{driver}/layerdb/mounts/{made.id}/mount-id", owner=made.owner, limit=256
        ).strip()
    except OSError as error:
        raise ImageError(
            f"{made.label()}: its layer in {printable(top)}: {error.strerror}", "its store is damaged"
        ) from None
    directory = f"{top}/{WHOLE[driver]}/{record}"
    if not store.is_component(record) or not os.path.isdir(directory):
        raise ImageError(f"{made.label()}: layer {printable(directory)} is not there", "its store is damaged")
    return directory


def _layers(made: Blueprint, path: str, answer: dict[str, Any]) -> None:
    driver = mapping(answer.get("GraphDriver"))
    data = mapping(driver.get("Data"))
    name = str(driver.get("Name") or "overlayfs")
    if name in WHOLE:
        made.upper = _whole(made, path, name)
    elif name != "overlay2" or not data.get("UpperDir"):
        _snapshot(made, path, name)
        return
    else:
        made.overlay = {"userxattr": ""} if made.owner else {}
        made.lower = [path for path in str(data.get("LowerDir") or "").split(":") if path]
        made.upper, made.work = str(data["UpperDir"]), str(data.get("WorkDir") or "")
    for part in made.upper.split("/") if not made.owner else ():  # userns-remap: DATA-ROOT/UID.GID/overlay2/…
        uid, dot, gid = part.partition(".")
        if (
            dot
            and uid.isdecimal()
            and gid.isdecimal()
            and mapping(answer.get("HostConfig")).get("UsernsMode") != "host"
        ):
            made.uid_map, made.gid_map = [(0, int(uid), 65536)], [(0, int(gid), 65536)]


def _security(made: Blueprint, host: dict[str, Any]) -> None:
    if host.get("Privileged") is True:
        made.privileged, made.capabilities = True, (1 << len(CAPABILITIES)) - 1
        made.masked = made.read_only_paths = []
        made.seccomp = "unconfined"
        return
    dropped, added = capability_mask(host.get("CapDrop")), capability_mask(host.get("CapAdd"))
    made.capabilities = (DEFAULT_CAPABILITIES & ~dropped) | added
    if isinstance(host.get("MaskedPaths"), list):
        made.masked = paths(host["MaskedPaths"])
    if isinstance(host.get("ReadonlyPaths"), list):
        made.read_only_paths = paths(host["ReadonlyPaths"])
    for option in host.get("SecurityOpt") or ():
        text = str(option)
        at = next((at for at, letter in enumerate(text) if letter in "=:"), len(text))  # a profile's text has both
        key, value = text[:at], text[at + 1 :]
        if key == "no-new-privileges":
            made.no_new_privs = value in ("", "true")
        elif key == "seccomp":
            made.seccomp = value


def _log(path: str, id: str) -> list[str]:
    """The last lines of its output, from a stream of frames: kind, three zero bytes, length in four bytes (Docker
    Engine API, attach).
    """
    request = f"/containers/{id}/logs?stdout=1&stderr=1&tail={LOG_LINES}"
    stream = io.BytesIO()
    docker_store.download(path, request, stream, time.monotonic() + 5, limit=1 << 20)
    data, text = stream.getvalue(), b""
    while len(data) >= 8 and data[0] in (0, 1, 2) and data[1:4] == b"\0\0\0":
        size = int.from_bytes(data[4:8], "big")
        text, data = text + data[8 : 8 + size], data[8 + size :]
    return [printable(line[:400]) for line in (text or data).decode(errors="replace").splitlines()[-LOG_LINES:]]


def _runs(path: str, owner: int, id: str) -> bool:
    status, answer = docker._get(path, f"/containers/{id}/json", owner, time.monotonic() + 5)
    return status == 200 and bool(mapping(answer).get("State", {}).get("Pid"))
