"""Checks an engine's claim that a pid belongs to a container against what the kernel says.

State files outlive their container, pids are reused, and a rootless user's files are only that user's claim. So a pid
from an engine counts only if the process itself bears the container's mark. Its start time is kept: a pidfd opened
later refers to the same process if the start time is still the same (pidfd_open(2), proc_pid_stat(5)).
"""

from __future__ import annotations

import os
import time

from cntr.engines.container import Container
from cntr.engines.pids import namespace_owner, start_time
from cntr.errors import TargetNotFound, printable
from cntr.linux import procfs

CAP_SYS_ADMIN = 1 << 21
ARGUMENTS = 1 << 14  # bytes read of a command line: a user may have thousands of processes with long ones
LONG = 32  # characters; ids of this length are random, so a text does not contain one by accident


def started(engine: str, name: str, pid: int, owner: int) -> Container:
    """A Container of a process that was found. Raises TargetNotFound if it has ended."""
    start = start_time(pid)
    if not start:
        raise TargetNotFound(f"{engine}:{printable(name)}: its process {pid} is gone", "is it still running?")
    return Container(engine, name, pid, owner=owner, start_time=start)


def marked(pid: int, *marks: str, owner: int = 0) -> int:
    """The start time of PID if the process bears one of MARKS (container ids), else 0.

    An id is looked for in the cgroup path; in the sources of the bind mounts that engines make (/etc/hosts,
    /etc/hostname), and in the layers of overlays; and in the arguments of the parent, the engine's monitor (conmon,
    containerd-shim). Short ids must be whole path components or arguments. A cgroup or a monitor counts only if it is
    root's or OWNER's: any user can name their own like this. The marks are checked between two readings of the start
    time.
    """
    start = start_time(pid)
    marks = tuple(mark for mark in marks if mark not in ("", ".", ".."))
    if not start or not marks:
        return 0
    try:
        found = _bears(pid, marks, (0, owner))
    except OSError:
        return 0
    return start if found and start_time(pid) == start else 0


def _bears(pid: int, marks: tuple[str, ...], owners: tuple[int, int]) -> bool:
    long = [mark for mark in marks if len(mark) >= LONG]
    for controllers, path in procfs.cgroups(procfs.read(f"{procfs.living(pid)}/cgroup")).items():
        words = path.split("/")
        for count, word in enumerate(words, 1):
            if (word in marks or any(mark in word for mark in long)) and (
                _cgroup_owner(controllers, "/".join(words[:count])) in owners
            ):
                return True
    parent = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    arguments = arguments_of([parent]).get(parent, []) if parent else []
    if any(mark in arguments for mark in marks) and speaker(parent) in owners:
        return True
    if not long:
        return False
    # Only what is bound from elsewhere, and the layers of overlays: a user may call the mount point, or the source, of a
    # FUSE file system as they like, and then all processes of the machine have that mount.
    mounts = procfs.mountinfo(procfs.read(f"{procfs.living(pid)}/mountinfo"))
    layers = [option for mount in mounts if mount.fstype == "overlay" for option in mount.super]
    return any(mark in text for text in (*(mount.root for mount in mounts), *layers) for mark in long)


def _cgroup_owner(controllers: str, path: str) -> int:
    """Who made a cgroup: the owner of its directory. If that is not visible: root, or the user of the user manager
    above it.
    """
    for directory in (f"/{controllers.removeprefix('name=')}", "", "/unified"):
        try:
            return os.stat(f"/sys/fs/cgroup{directory}{path}").st_uid
        except OSError:
            continue
    return -1 if "/user@" in path else 0


def uid_of(pid: int) -> int:
    """The uid of PID if its real, effective, saved and file-system uids are the same, else -1: a set-uid program is not
    its caller's.

    The owner of /proc/PID does not tell: it is root for any process that is not dumpable.
    """
    try:
        uids = set(procfs.status(procfs.read(f"/proc/{pid}/status")).get("Uid", "").split())
        return int(uids.pop()) if len(uids) == 1 else -1
    except (OSError, ValueError):
        return -1


def belongs_to(pid: int, uid: int) -> bool:
    """Whether PID is UID's own: it runs as UID in this user namespace, or in one that UID made, directly or nested.

    Root reads the state files of every user, and a user may write any pid into theirs: only their own processes count.
    """
    try:
        made = namespace_owner(pid)
    except OSError:
        return False
    return (uid_of(pid) if made is None else made) == uid


def may_be_named_by(pid: int, owner: int) -> bool:
    """Whether OWNER may name PID: a user their own processes, root all processes except those in users' namespaces.

    Root's files may be stale, and a user may wait until the pid in one is that of a process of their own.
    """
    if owner:
        return belongs_to(pid, owner)
    try:
        return namespace_owner(pid) in (None, 0)
    except PermissionError:
        return True  # this caller may not look, and cannot attach either
    except OSError:
        return False


def speaker(pid: int) -> int:
    """The uid whose claim a monitor's arguments are: its own, or that of its user namespace's owner; -1 if unclear.

    Processes of a container can set any title. A real monitor is outside, in this pid namespace, and root's has
    CAP_SYS_ADMIN, like whoever made the container.
    """
    try:
        fields = procfs.status(procfs.read(f"/proc/{pid}/status"))
        uids = set(fields["Uid"].split())
        try:
            made = namespace_owner(pid)
            outside = os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.stat("/proc/self/ns/pid"))
        except PermissionError:
            made, outside = None, os.geteuid() != 0
        if len(uids) != 1 or not outside:
            return -1
        if made is not None:
            return made
        uid = int(uids.pop())
        return -1 if uid == 0 and not int(fields["CapEff"], 16) & CAP_SYS_ADMIN else uid
    except (OSError, KeyError, ValueError):
        return -1


def state(pid: int) -> str:
    """``running`` or ``paused``, by the freezer of its cgroup (cgroups(7); v1 freezer.state, v2 cgroup.events)."""
    try:
        paths = procfs.cgroups(procfs.read(f"/proc/{pid}/cgroup"))
    except OSError:
        return "running"
    for controllers, path in paths.items():
        if "freezer" in controllers.split(","):
            if _is_frozen(f"/sys/fs/cgroup/freezer{path}/freezer.state"):
                return "paused"
        elif not controllers and path != "/":
            for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                if _is_frozen(f"{root}{path}/cgroup.events"):
                    return "paused"
    return "running"


def _is_frozen(path: str) -> bool:
    try:
        return procfs.is_frozen(procfs.read(path))
    except OSError:
        return False


SANDBOXES = {
    "runsc-sandbox": "gVisor",
    "runsc": "gVisor",
    "firecracker": "Firecracker",
    "containerd-shim-kata-v2": "Kata Containers",
    "kata-qemu": "Kata Containers",
    "cloud-hypervisor": "Cloud Hypervisor",
    "qemu-system-x86_64": "QEMU",
    "qemu-system-aarch64": "QEMU",
    "qemu-kvm": "QEMU",
    "crosvm": "crosvm",
}


def sandbox(pid: int) -> str:
    """The name of the VM or user-space kernel that PID is the monitor of, "" for an ordinary process.

    Call it only for what an engine names as a container's first process. A container may *run* qemu, so the process
    must also be in this process's own pid namespace, where a container's first process rarely is.
    """
    try:
        argv0 = arguments_of([pid]).get(pid, [""])[0]
        known = SANDBOXES.get(argv0.rpartition("/")[2], "")
        if known and os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino:
            return known
        # gVisor's sandbox has namespaces of its own, but names itself
        return "gVisor" if argv0 == "runsc-sandbox" else ""
    except OSError:
        return ""


# Monitors whose arguments describe their containers; one walk over the processes looks for all of them.
MONITORS = (
    *(
        "conmon",
        "containerd-shim-runc-v2",
        "containerd-shim-runc-v1",
        "containerd-shim",
        "[lxc monitor]",
        "systemd-nspawn",
    ),
    *("Apptainer instance", "Singularity instance", "buildah-chroot-exec", "buildah-oci-runtime", "firecracker"),
    *("containerd-shim-kata-v2", "qemu-system-x86_64", "qemu-system-aarch64", "cloud-hypervisor"),
)

_scan: tuple[float, dict[str, list[tuple[int, list[str]]]]] = (-1.0, {})


def forget() -> None:
    """Start a new lookup: the next call walks over the processes again."""
    global _scan
    _scan = (-1.0, {})


def arguments_of(pids: list[int]) -> dict[int, list[str]]:
    """The first ARGUMENTS bytes of each command line, by pid, without processes that have ended or
    whose memory cannot be read.
    """
    from cntr.linux import process_texts

    found = process_texts.read([f"/proc/{pid}/cmdline" for pid in pids], ARGUMENTS)
    return {int(path.split("/")[2]): text.split("\0") for path, text in found.items()}


def processes_named(*names: str) -> list[tuple[int, list[str]]]:
    """(pid, arguments) of each process whose first argument is a path to one of NAMES, or begins with one.

    The arguments of many engines' monitors tell everything needed. One walk of /proc (15 µs per process) serves all
    engines of a lookup; it is repeated after a tenth of a second.
    """
    global _scan
    if time.monotonic() - _scan[0] > 0.1 or not all(name in _scan[1] for name in names):
        found: dict[str, list[tuple[int, list[str]]]] = {name: [] for name in (*MONITORS, *_scan[1], *names)}
        for pid, arguments in arguments_of([int(name) for name in os.listdir("/proc") if name.isdecimal()]).items():
            first = arguments[0]
            key = first.split(" /", 1)[0].split(": ", 1)[0] if " " in first else first.rpartition("/")[2]
            if key in found:
                found[key].append((pid, arguments))
        _scan = (time.monotonic(), found)
    return [row for name in names for row in _scan[1].get(name, ())]


def children(pid: int) -> list[int]:
    """The child processes of PID's main thread (proc_pid_children(5)); empty if it is gone."""
    try:
        return [int(word) for word in procfs.read(f"/proc/{pid}/task/{pid}/children").split()]
    except OSError:
        return []


def option(arguments: list[str], *names: str) -> str:
    """The value of the first of the options NAMES on a command line: ``-x VALUE``, ``--x=VALUE`` or ``-xVALUE``."""
    for index, argument in enumerate(arguments[1:], 1):
        for name in names:
            if argument == name:
                return arguments[index + 1] if index + 1 < len(arguments) else ""
            if argument.startswith(f"{name}=") or (len(name) == 2 and len(argument) > 2 and argument.startswith(name)):
                return argument[len(name) :].removeprefix("=")
    return ""
