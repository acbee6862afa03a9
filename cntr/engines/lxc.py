"""LXC, and LXD and Incus, which use it: each container's monitor listens on an abstract socket and tells the pid.

The sockets are ``@LXCPATH/NAME/command`` in /proc/net/unix. The request is struct lxc_cmd_req {int cmd, datalen; void
*data} with SCM_CREDENTIALS, the answer struct lxc_cmd_rsp {int ret, datalen; void *data} (lxc's src/lxc/commands.c).
Any user may listen on an abstract name. So the pid must be a child of that container's monitor, which belongs to the
listener's user: root, in this pid namespace, or the user who owns the process.
"""

from __future__ import annotations

import os
import time

from cntr.engines import evidence, pids, store, trust, unixhttp
from cntr.engines.container import Container, NotRunning, Refused
from cntr.linux import procfs

BLOCKING = True
SUFFIX = "/command"
TITLE = "[lxc monitor] "
PATH, SYSTEM_CONF = "/var/lib/lxc", "/etc/lxc/lxc.conf"
LINES = 10_000  # of a configuration
GET_INIT_PID = 4  # LXC_CMD_GET_INIT_PID
SCM_CREDENTIALS = 2  # linux/socket.h; Python's `_socket` has it only if the build found it
MANAGERS = {  # engine → (programs that monitor its containers, variable naming its directory, default directories)
    "lxd": (("lxd",), "LXD_DIR", ("/var/lib/lxd", "/var/snap/lxd/common/lxd")),
    "incus": (("incus", "incusd"), "INCUS_DIR", ("/var/lib/incus",)),
}


def find(name: str, deadline: float) -> list[Container]:
    """The container NAME; for LXD and Incus also PROJECT/NAME."""
    names = (name, name.replace("/", "_", 1))
    running = _look(names, deadline) or [found for engine in MANAGERS for found in _idle(engine, names)]
    return running or _stopped(name)


def find_by_process(name: str, deadline: float) -> list[Container]:
    """The container NAME whose monitor's socket is not visible here."""
    return [found for found in _by_monitor() if found.name in (name, name.replace("/", "_", 1))]


def containers(deadline: float) -> list[Container]:
    """All running containers."""
    found = _look(None, deadline)
    pids = {container.pid for container in found}
    return found + [container for container in _by_monitor() if container.pid not in pids]


def _look(names: tuple[str, ...] | None, deadline: float) -> list[Container]:
    found, refused = [], None
    theirs: dict[int, list[tuple[unixhttp.Stream, str, str]]] = {}
    for path, called in sockets():
        if names is not None and called not in names:
            continue
        try:
            stream = unixhttp.connect_at_once(f"\0{path}/{called}{SUFFIX}")
            uid = unixhttp.peer(stream)[1]
            if uid:  # after root's, and only a few of each user's
                if len(theirs.setdefault(uid, [])) < OF_A_USER and len(theirs) < OF_A_USER:
                    theirs[uid].append((stream, path, called))
                else:
                    stream.close()
                continue
            container = _ask(stream, path, called, deadline)
        except OSError as error:
            refused = Refused(f"{called}: {error.strerror or error}")
            continue
        if container:
            found.append(container)
    for stream, path, called in (row for rows in theirs.values() for row in rows):
        try:
            if container := _ask(stream, path, called, min(deadline, time.monotonic() + PATIENCE)):
                found.append(container)
        except OSError:
            continue
    if not found and refused and names is not None:
        raise refused
    return found


OF_A_USER, PATIENCE = 16, 0.05  # how many of one user's monitors are asked; seconds for each


def sockets() -> list[tuple[str, str]]:
    """(lxcpath, name) of the monitors that listen in this network namespace, the default directories first."""
    found: dict[tuple[str, str], None] = {}
    for line in procfs.read("/proc/net/unix", limit=store.LIMIT).split("\n"):
        at = line.find(" @/")
        if at > 0 and line.endswith(SUFFIX):
            path, _, name = line[at + 2 : -len(SUFFIX)].rpartition("/")
            if path and name:
                found[path, name] = None
    return sorted(found, key=lambda row: not row[0].startswith("/var/"))[: trust.SOME]


def _ask(stream: unixhttp.Stream, path: str, name: str, deadline: float) -> Container | None:
    try:
        # The peer's pid is that of lxc-start before it daemonized, so only the uid is usable.
        owner = unixhttp.peer(stream)[1]
        stream.settimeout(max(0.01, deadline - time.monotonic()))
        pid = _init_pid(stream)
    finally:
        stream.close()
    start = pids.start_time(pid)
    monitor = _monitor(pid, path, name, owner) if start else 0
    if not monitor:
        return None
    state = evidence.state(pid)
    return Container(_engine(path, monitor), name, pid, id=name, state=state, owner=owner, start_time=start)


def _by_monitor() -> list[Container]:
    """The containers, by their monitors' titles.

    An abstract socket is visible in one network namespace only, and a path too long for sun_path (unix(7)) is hashed
    into the name.
    """
    found = []
    for monitor, arguments in evidence.processes_named(TITLE.strip()):
        path, _, name = arguments[0].removeprefix(TITLE).rpartition(" ")
        owner = evidence.speaker(monitor)
        pid = min(evidence.children(monitor), key=pids.start_time, default=0)
        start = pids.start_time(pid)
        if name and start and owner >= 0:
            state = evidence.state(pid)
            found.append(
                Container(_engine(path, monitor), name, pid, id=name, state=state, owner=owner, start_time=start)
            )
    return found


def _monitor(pid: int, path: str, name: str, owner: int) -> int:
    """The container's monitor if it is PID's parent and OWNER's: ``[lxc monitor] LXCPATH NAME``. Else 0."""
    try:
        parent = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
        title = evidence.arguments_of([parent]).get(parent, [""])[0]
    except OSError:
        return 0
    return parent if title == f"{TITLE}{path} {name}" and evidence.speaker(parent) == owner else 0


def _init_pid(stream: unixhttp.Stream) -> int:
    credentials = b"".join(n.to_bytes(4, "little") for n in (os.getpid(), os.geteuid(), os.getegid()))
    request = GET_INIT_PID.to_bytes(4, "little") + bytes(12)
    stream.sendmsg([request], [(unixhttp.SOL_SOCKET, SCM_CREDENTIALS, credentials)])
    answer = b""
    while len(answer) < 16:
        chunk = stream.recv(16 - len(answer))
        if not chunk:
            return 0
        answer += chunk
    # The pid is stored as a pointer: PTR_TO_INT(rsp.data), 64 bits little endian on every machine that LXC supports.
    return int.from_bytes(answer[8:12], "little", signed=True)


def _engine(path: str, monitor: int) -> str:
    """Which engine made the container: LXD's and Incus's monitors are their own programs, others are told by the
    directory.
    """
    try:
        program = os.readlink(f"/proc/{monitor}/exe").removesuffix(" (deleted)").rpartition("/")[2]
    except OSError:
        program = ""
    for engine, (programs, _, _) in MANAGERS.items():
        if program in programs or path in [f"{root}/containers" for root in _roots(engine)]:
            return engine
    return "lxc"


def _roots(engine: str) -> list[str]:
    _, variable, usual = MANAGERS[engine]
    own = os.environ.get(variable)
    return [own, *usual] if own else list(usual)


def _idle(engine: str, names: tuple[str, ...]) -> list[Container]:
    """An instance without a monitor: a virtual machine, whose processes are not on this host, or a stopped container."""
    for name in names:
        for root in _roots(engine) if store.is_component(name) else ():
            if os.path.exists(f"{root}/virtual-machines/{name}"):
                return [Container(engine, name, 0, id=name, state="sandboxed")]
            if os.path.exists(f"{root}/containers/{name}"):
                raise NotRunning(f"{engine} has {name}, but it is not running", "", name)
    return []


def _stopped(name: str) -> list[Container]:
    """Raises NotRunning if it is LXC's own."""
    if store.is_component(name) and any(os.path.isfile(f"{path}/{name}/config") for path in directories()):
        raise NotRunning(f"lxc has {name}, but it is not running", f"`lxc-start {name}` starts it", name)
    return []


def directories() -> list[str]:
    """The directories of containers: $CNTR_LXC_ROOT, lxc.lxcpath of the configuration (lxc.system.conf(5)), the
    default; a user's first.
    """
    places = [(SYSTEM_CONF, PATH)]
    me = os.geteuid()
    if me and store.runtime_dirs() and (home := store.home(me)):  # a home may be a slow automount
        places.insert(0, (f"{home}/.config/lxc/lxc.conf", f"{home}/.local/share/lxc"))
    found = []
    for conf, usual in places:
        try:
            found.append(dict(settings(store.read(conf, limit=store.MEGABYTE))).get("lxc.lxcpath") or usual)
        except OSError:
            found.append(usual)
    return list(dict.fromkeys(store.roots("lxc", *found)))


def settings(text: str) -> list[tuple[str, str]]:
    """[(key, value)] of a configuration file of LXC's."""
    rows = (line.partition("=") for line in text.splitlines()[:LINES] if not line.lstrip().startswith("#"))
    return [(key.strip(), value.strip()) for key, equals, value in rows if equals]
