"""Is that pid still that container? What the kernel says about a process, against what an engine's file says.

State files outlive their container, pids are reused, and a rootless user's files are that user's word only. So a pid
from an engine counts when the process itself bears the container's mark, and its start time is handed on: with a pidfd
opened later, the same start time means the same process (pidfd_open(2), proc_pid_stat(5)).
"""

from __future__ import annotations

import os
import time

from cntr.linux import procfs

NS_GET_OWNER_UID = 0xB704  # linux/nsfs.h, ioctl_ns(2)
LONG = 32  # characters; ids this long are random, so finding one in a text is no accident


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, in clock ticks since boot; 0 where there is no such process, or it is a zombie."""
    if pid <= 0:
        return 0
    try:
        stat = procfs.read(f"/proc/{pid}/stat")
    except OSError:
        return 0
    return 0 if stat.rpartition(")")[2].split()[0] in ("Z", "X") else procfs.start_time(stat)


def marked(pid: int, *marks: str) -> int:
    """The start time of PID if the process bears one of MARKS (container ids), else 0.

    An id shows in the cgroup path; in the sources of the bind mounts engines make (/etc/hosts, /etc/hostname); or in the
    arguments of the parent, the engine's monitor (conmon, containerd-shim). Short ids must be whole path components or
    arguments. The marks are looked for between two readings of the start time.
    """
    start = start_time(pid)
    if not start:
        return 0
    try:
        found = _bears(pid, marks)
    except OSError:
        return 0
    return start if found and start_time(pid) == start else 0


def _bears(pid: int, marks: tuple[str, ...]) -> bool:
    cgroup = procfs.read(f"/proc/{pid}/cgroup")
    long = [mark for mark in marks if len(mark) >= LONG]
    if any(mark in cgroup for mark in long):
        return True
    components = set(cgroup.replace("\n", "/").split("/"))
    if any(mark in components for mark in marks):
        return True
    parent = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    arguments = procfs.read(f"/proc/{parent}/cmdline").split("\0") if parent else []
    if any(mark in arguments for mark in marks):
        return True
    if not long:
        return False
    mounts = procfs.read(f"/proc/{pid}/mountinfo")
    return any(mark in mounts for mark in long)


def belongs_to(pid: int, uid: int) -> bool:
    """Whether PID is UID's own: it runs as UID, or in a user namespace that UID made (directly or nested).

    Root reads the state files of every user, and a user may write any pid into theirs: only their own processes count.
    """
    import fcntl  # a C module: 0.1 ms

    try:
        fields = procfs.status(procfs.read(f"/proc/{pid}/status"))
        if fields.get("Uid", "").split()[:2] == [str(uid), str(uid)]:
            return True
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        buffer = bytearray(4)
        fcntl.ioctl(fd, NS_GET_OWNER_UID, buffer)
        return int.from_bytes(buffer, "little") == uid
    except OSError:
        return False
    finally:
        os.close(fd)


def state(pid: int) -> str:
    """``running`` or ``paused``: the freezer of its cgroup (cgroups(7); v1 freezer.state, v2 cgroup.events)."""
    try:
        paths = procfs.cgroups(procfs.read(f"/proc/{pid}/cgroup"))
    except OSError:
        return "running"
    for controllers, path in paths.items():
        if "freezer" in controllers.split(","):
            if _says(f"/sys/fs/cgroup/freezer{path}/freezer.state", ("FROZEN", "FREEZING")):
                return "paused"
        elif not controllers and path != "/":
            for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                if _says(f"{root}{path}/cgroup.events", ("frozen 1",)):
                    return "paused"
    return "running"


def _says(path: str, lines: tuple[str, ...]) -> bool:
    try:
        text = procfs.read(path)
    except OSError:
        return False
    return any(line in lines for line in text.splitlines())


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

    Only asked of a pid that an engine calls a container's first process; a container may well *run* qemu, so the process
    must also be in this process's own pid namespace, where a container's first process rarely is.
    """
    try:
        argv0 = procfs.read(f"/proc/{pid}/cmdline", limit=4096).split("\0")[0]
        known = SANDBOXES.get(argv0.rpartition("/")[2], "")
        if known and os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino:
            return known
        # gVisor's sandbox is in namespaces of its own, but names itself
        return "gVisor" if argv0 == "runsc-sandbox" else ""
    except OSError:
        return ""


_scan: tuple[float, dict[str, list[tuple[int, list[str]]]]] = (-1.0, {})


def forget() -> None:
    """A new look-up begins: walk over the processes anew."""
    global _scan
    _scan = (-1.0, {})


def processes_named(*names: str) -> list[tuple[int, list[str]]]:
    """(pid, arguments) of each process whose first argument is a path to, or begins with the words of, one of NAMES.

    The monitors of many engines tell all there is to know in their arguments. One walk of /proc (15 µs a process) serves
    all engines of one look-up; it is repeated after a tenth of a second.
    """
    global _scan
    if time.monotonic() - _scan[0] > 0.1:
        found: dict[str, list[tuple[int, list[str]]]] = {}
        for pid in os.listdir("/proc"):
            if pid.isdecimal():
                try:
                    arguments = procfs.read(f"/proc/{pid}/cmdline", limit=1 << 16).split("\0")
                except OSError:
                    continue
                first = arguments[0]
                key = first.split(" /", 1)[0].split(": ", 1)[0] if " " in first else first.rpartition("/")[2]
                if key:  # a kernel thread has none
                    found.setdefault(key, []).append((int(pid), arguments))
        _scan = (time.monotonic(), found)
    return [row for name in names for row in _scan[1].get(name, ())]


def children(pid: int) -> list[int]:
    """The child processes of PID's main thread (proc_pid_children(5)); none where it is gone."""
    try:
        return [int(word) for word in procfs.read(f"/proc/{pid}/task/{pid}/children").split()]
    except OSError:
        return []


def owner_of(pid: int) -> int:
    """The effective uid of PID, -1 where it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def option(arguments: list[str], *names: str) -> str:
    """The value of the first of the options NAMES in a command line, as ``-x VALUE``, ``--x=VALUE`` or ``-xVALUE``."""
    for index, argument in enumerate(arguments[1:], 1):
        for name in names:
            if argument == name:
                return arguments[index + 1] if index + 1 < len(arguments) else ""
            if argument.startswith(f"{name}=") or (len(name) == 2 and len(argument) > 2 and argument.startswith(name)):
                return argument[len(name) :].removeprefix("=")
    return ""
