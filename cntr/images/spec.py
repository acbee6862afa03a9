"""Converts an OCI runtime configuration (config.json, runtime-spec), as Podman, containerd and CRI keep it, to a
blueprint.
"""

from __future__ import annotations

import os

from cntr.errors import printable
from cntr.images.blueprint import Blueprint, Mount, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# By bit number, linux/capability.h.
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
OWN = (
    "/proc",
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/sys",
    "/sys/fs/cgroup",
)  # a stand-in makes these itself
MANAGED = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/run/secrets")
LIMIT_NAMES = (
    "RLIMIT_AS RLIMIT_CORE RLIMIT_CPU RLIMIT_DATA RLIMIT_FSIZE RLIMIT_MEMLOCK RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_NOFILE "
    "RLIMIT_NPROC RLIMIT_RSS RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RLIMIT_STACK"
).split()
# runtime-spec config-linux.md, "Default Devices"
USUAL_DEVICES = tuple(
    f"/dev/{name}" for name in "null zero full random urandom tty console ptmx fd stdin stdout stderr".split()
)
NAMESPACES = {"network": "net", "ipc": "ipc", "uts": "uts"}


def capability_mask(names: object) -> int:
    """The mask of CAP_* names, with or without the prefix; ALL means all known ones."""
    mask = 0
    for name in names if isinstance(names, list) else ():
        name = str(name).upper().removeprefix("CAP_")
        if name == "ALL":
            return (1 << len(CAPABILITIES)) - 1
        if name in CAPABILITIES:
            mask |= 1 << CAPABILITIES.index(name)
    return mask


def limit(soft: object, hard: object) -> tuple[int, int] | None:
    """(soft, hard), -1 for unlimited; None if the values are invalid."""
    if not isinstance(soft, int) or not isinstance(hard, int) or isinstance(soft, bool):
        return None
    low, high = (-1 if value < 0 or value >= 1 << 63 else value for value in (soft, hard))
    return low, high


def take(made: Blueprint, spec: dict[str, Any]) -> None:
    """Fill the blueprint from a runtime configuration. Values of a wrong type are ignored."""
    process, linux = mapping(spec.get("process")), mapping(spec.get("linux"))
    made.entrypoint, made.argv = [], words(process.get("args"))
    for setting in words(process.get("env")):
        key, equals, value = setting.partition("=")
        if key and equals:
            made.environment[key] = value
    directory = process.get("cwd")
    made.directory = directory if isinstance(directory, str) and directory.startswith("/") else "/"
    user = mapping(process.get("user"))
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    made.user = f"{uid}:{gid}" if isinstance(uid, int) and isinstance(gid, int) else ""
    extra = user.get("additionalGids")
    made.groups = [str(one) for one in extra if isinstance(one, int)] if isinstance(extra, list) else []
    made.capabilities = capability_mask(mapping(process.get("capabilities")).get("bounding"))
    made.ambient = made.capabilities & capability_mask(mapping(process.get("capabilities")).get("ambient"))
    umask = user.get("umask")
    made.umask = umask & 0o777 if isinstance(umask, int) else made.umask
    made.no_new_privs = process.get("noNewPrivileges") is True
    profile = process.get("apparmorProfile")
    made.apparmor = profile if isinstance(profile, str) else ""
    score = process.get("oomScoreAdj")
    made.oom_score_adj = score if isinstance(score, int) else 0
    for row in process.get("rlimits") or ():
        found = limit(mapping(row).get("soft"), mapping(row).get("hard"))
        if found and mapping(row).get("type") in LIMIT_NAMES:
            made.limits[str(row["type"])] = found
    if isinstance(spec.get("domainname"), str):
        made.sysctls["kernel.domainname"] = spec["domainname"]
    made.read_only = mapping(spec.get("root")).get("readonly") is True
    made.hostname = str(spec.get("hostname") or "")[:64]
    made.masked, made.read_only_paths = paths(linux.get("maskedPaths")), paths(linux.get("readonlyPaths"))
    made.seccomp = linux.get("seccomp") or "unconfined"
    made.uid_map, made.gid_map = id_map(linux.get("uidMappings")), id_map(linux.get("gidMappings"))
    made.sysctls |= {str(key): str(value) for key, value in mapping(linux.get("sysctl")).items()}
    devices = [str(mapping(row).get("path")) for row in linux.get("devices") or ()]
    more = [path for path in devices if path not in USUAL_DEVICES]
    if more:
        made.left_out.append(f"no devices but the usual ones: {', '.join(map(printable, more[:20]))}")
    resources = mapping(linux.get("resources"))
    made.memory, made.pids = (_number(mapping(resources.get(key)).get("limit")) for key in ("memory", "pids"))
    named = {str(mapping(row).get("type")): mapping(row).get("path") for row in linux.get("namespaces") or ()}
    made.share = {own for kind, own in NAMESPACES.items() if kind not in named}
    made.mounts = [mount for row in spec.get("mounts") or () if (mount := _mount(mapping(row)))]
    for row in spec.get("mounts") or ():
        row = mapping(row)
        if row.get("destination") == "/dev/shm":
            made.shm = _size(row.get("options")) or made.shm
        elif row.get("type") == "overlay" and not _mount(row):
            made.left_out.append(f"no image at {printable(str(row.get('destination'))[:200])}")


def _size(options: object) -> int:
    """The bytes of size=N[k]."""
    text = (
        next((str(one)[5:] for one in options if str(one).startswith("size=")), "") if isinstance(options, list) else ""
    )
    digits = text.rstrip("kK")
    return int(digits) << (10 if digits != text else 0) if digits.isdecimal() and len(digits) < 16 else 0


def _number(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 63 else 0


def mapping(value: object) -> dict[str, Any]:
    """VALUE if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def paths(value: object) -> list[str]:
    """The absolute paths in a list."""
    return [one for one in words(value) if one.startswith("/")] if isinstance(value, list) else []


def id_map(value: object) -> list[tuple[int, int, int]]:
    """The rows of a user namespace's map."""
    rows = []
    for row in value if isinstance(value, list) else ():
        numbers = tuple(mapping(row).get(key) for key in ("containerID", "hostID", "size"))
        if all(isinstance(number, int) and 0 <= number < 1 << 32 for number in numbers):
            rows.append((numbers[0], numbers[1], numbers[2]))
    return rows  # type: ignore[return-value]


def _mount(row: dict[str, Any]) -> Mount | None:
    destination, source, kind = row.get("destination"), row.get("source"), row.get("type")
    options = row.get("options") if isinstance(row.get("options"), list) else []
    if not isinstance(destination, str) or not destination.startswith("/") or os.path.normpath(destination) in OWN:
        return None
    if destination.startswith("/sys/fs/cgroup/"):
        return None
    options = [str(one) for one in options or ()]
    # Podman's: a directory under a layer that it throws away (-v DIR:PATH:O), or an image's layers.
    if kind == "overlay":
        lower = next((one[9:] for one in options if one.startswith("lowerdir=")), "")
        single = lower.startswith("/") and ":" not in lower
        return Mount("bind", lower, destination, options=["overlay"]) if single else None
    read_only = "ro" in options
    if kind == "bind" or {"bind", "rbind"} & set(options):
        if not isinstance(source, str) or not source.startswith("/"):
            return None
        if not os.path.exists(source) and destination.startswith(MANAGED):
            return None  # the engine creates it at each start
        return Mount("bind", source, destination, read_only=read_only, options=options)
    return Mount("tmpfs", "", destination, read_only=read_only, options=options) if kind == "tmpfs" else None
