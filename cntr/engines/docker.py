"""Docker: rootful, rootless and remapped, by the API on its Unix socket (Docker Engine API, /containers/NAME/json)."""

from __future__ import annotations

import os

from cntr.engines import evidence, pids, store, trust, unixhttp
from cntr.engines.container import Container, NotRunning, Refused, RemoteRefused
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cntr.engines.store import Json

    Found = TypeVar("Found")

BLOCKING = True
LATE = "timed out"  # error text for a socket, like answer.LATE
SCHEMES = ("unix", "tcp", "ssh", "http", "https", "npipe")
LONGEST = 107  # bytes of a socket's path: sockaddr_un, unix(7)
NAME = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
# Where containerd's shims keep the pids of Docker's containers: the API's list has no pids.
PID_FILES = (
    "/run/containerd/io.containerd.runtime.v2.task/moby/%s/init.pid",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/%s/init.pid",
)


def find(name: str, deadline: float) -> list[Container]:
    """The container of that name, id or unique id prefix, of each daemon on this machine."""
    if not NAME.issuperset(name) or name[0] in ".-_":
        return []
    return each(lambda path, owner: _inspect(path, name, owner, deadline))


def containers(deadline: float) -> list[Container]:
    """All running and paused containers of each daemon on this machine."""
    return each(lambda path, owner: _list(path, owner, deadline))


def each(ask: Callable[[str, int], list[Found]]) -> list[Found]:
    """The answers of all daemons. A refusal is raised only if no daemon answered. Raises Refused, OSError."""
    found: list[Found] = []
    refused: Refused | None = None
    for path, owner in endpoints():
        try:
            found += ask(path, owner)
        except (FileNotFoundError, ConnectionRefusedError):
            refused = refused or Refused(f"nobody listens on {path}", "is the daemon running? `systemctl start docker`")
        except (TimeoutError, BlockingIOError):
            refused = refused or Refused(LATE)
        except PermissionError:
            refused = Refused(f"{path}: permission denied")
        except NotRunning as error:
            refused = error
        except Refused as error:
            refused = refused or error
    if not found and refused:
        raise refused
    return found


def endpoints() -> list[tuple[str, int]]:
    """(socket path, owner's uid) of the daemons to ask, in the docker CLI's order of precedence.

    The daemon of $DOCKER_HOST, else of the context of $DOCKER_CONTEXT or ~/.docker/config.json. Otherwise the system's
    and the caller's rootless ones. Raises Refused if it is on another machine, whose pids mean nothing here, or if any
    user could have made the socket.
    """
    host = _host()
    if not host:
        usual = ["/run/docker.sock", *(f"{path}/docker.sock" for path in store.runtime_dirs())]
        found = [(path, trust.owner_or_anybody(path)) for path in usual if os.path.exists(path)]
        return [row for row in found if trust.accepts(row[1])]
    scheme, _, path = host.partition("://")
    if _is_local_tcp(host):
        raise Refused(f"DOCKER_HOST or the context names {host}: only the docker command can ask there")
    near = "or choose this machine's daemon: `docker context use default`, DOCKER_HOST=unix:///run/docker.sock"
    if scheme not in SCHEMES or not path or (scheme == "unix" and (path[0] != "/" or len(os.fsencode(path)) > LONGEST)):
        raise Refused(f"DOCKER_HOST or the context names {host}: no daemon's address", f"correct it, {near}")
    if scheme != "unix":
        words = f"DOCKER_HOST or the context names {host}, a daemon on another machine"
        if scheme == "ssh":  # ssh://[user@]host[:port][/path of its socket]
            where = f"ssh://{path.partition('/')[0]}"
            raise RemoteRefused(words, f"`cntr --host {where} attach NAME`, {near}", where)
        raise Refused(f"{words}: run cntr on that machine", f"run cntr there, {near}")
    if not os.path.exists(path):
        return [(path, 0)]  # nobody listens there, which the connect will report
    owner = trust.owner_or_anybody(path)
    if owner == trust.ANYBODY:
        raise Refused(f"{path}: {store.written_by(owner)}")
    if not trust.accepts(owner) and "DOCKER_HOST" not in os.environ:
        raise Refused(f"the context names {path}, uid {owner}'s socket: name it by DOCKER_HOST")
    return [(path, owner)] if trust.accepts(owner) else []


def is_behind_local_tcp() -> bool:
    """Whether the daemon listens on this machine's loopback: then the docker command must be asked, which has the keys."""
    try:
        return _is_local_tcp(_host())
    except Refused:
        return False


def check_tcp() -> None:
    """Raise Refused if a user listens on the loopback port of $DOCKER_HOST or the context: any user may
    (proc_net_tcp(5)).
    """
    port = _host().rpartition(":")[2].partition("/")[0]
    for table in ("tcp", "tcp6") if port.isdecimal() else ():
        try:
            rows = [line.split() for line in procfs.read(f"/proc/net/{table}").splitlines()[1:]]
        except OSError:
            continue
        # local_address is ADDRESS:PORT in hexadecimal, st 0A is LISTEN, uid is the eighth column
        for uid in (row[7] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == int(port)):
            if not trust.accepts(int(uid)):
                raise Refused(f"uid {uid} listens on port {port} of this machine")


def _host() -> str:
    return os.environ.get("DOCKER_HOST") or _context_host()


def _is_local_tcp(host: str) -> bool:
    address = host.removeprefix("tcp://").rpartition(":")[0]
    return host.startswith("tcp://") and (address in ("localhost", "[::1]") or address.startswith("127."))


def _context_host() -> str:
    """The endpoint of the docker CLI's current context, "" for the default one (docker-context(1))."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.join(os.environ.get("HOME", "/root"), ".docker")
    name = os.environ.get("DOCKER_CONTEXT", "")
    try:
        name = name or str(store.load(f"{directory}/config.json").get("currentContext") or "")
        if not name or name == "default":
            return ""
        # A context's directory is named by the SHA-256 of its name; `import hashlib` would load OpenSSL, 3 ms.
        from hashlib import sha256

        meta = store.load(f"{directory}/contexts/meta/{sha256(name.encode()).hexdigest()}/meta.json")
        return str(meta["Endpoints"]["docker"]["Host"])
    except PermissionError:
        return ""  # HOME belongs to another user: some sudo configurations keep it
    except FileNotFoundError:
        if name:
            raise Refused(f"the docker context {name!r} does not exist") from None
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"the docker context in {directory} can not be read ({error})") from None


def _get(path: str, request: str, owner: int, deadline: float) -> tuple[int, Json]:
    stream = unixhttp.connect(path, deadline)
    try:
        pid, uid = unixhttp.peer(stream)
        if uid not in (0, owner):
            raise Refused(f"{path}: uid {uid} listens there")
        _same_pids(path, pid)
        status, body = unixhttp.get(stream, request, deadline)
    except ValueError as error:
        raise Refused(f"{path}: {error}") from None
    finally:
        stream.close()
    try:
        return status, store.parse(body)
    except ValueError:
        raise Refused(f"{path}: the answer is not JSON") from None


def _same_pids(path: str, peer: int) -> None:
    """A socket may be bind-mounted from elsewhere (Docker in Docker, a VM), with pids of another namespace. Raises
    Refused.
    """
    try:
        if peer and os.stat(f"/proc/{peer}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino:
            return
    except PermissionError:
        return  # a user may not look at the daemon; evidence.marked checks each container
    except OSError:
        pass
    raise Refused(
        f"{path}: its daemon runs in another pid namespace, so its pids are not this machine's: run cntr there"
    )


def _inspect(path: str, name: str, owner: int, deadline: float) -> list[Container]:
    status, answer = _get(path, f"/containers/{unixhttp.quote(name)}/json", owner, deadline)
    if status == 404:
        return []
    if status != 200:
        raise Refused(f"{path}: {answer.get('message', f'HTTP {status}')}")
    return [container(answer, owner)]


def container(answer: Json, owner: int) -> Container:
    """A Container from the answer of /containers/NAME/json. Raises NotRunning, Refused."""
    state, pid, id = answer["State"], int(answer["State"]["Pid"]), str(answer["Id"])
    name = str(answer["Name"]).lstrip("/")
    if not pid or (state.get("Restarting") and not pids.start_time(pid)):
        status = "restarting" if state.get("Restarting") else str(state["Status"])
        why = store.ended("docker", name, status, int(state["ExitCode"]), bool(state.get("OOMKilled")))
        raise NotRunning(*why, called=name)
    runtime = str(answer.get("HostConfig", {}).get("Runtime", ""))
    start = evidence.marked(pid, id, owner=owner) if store.is_whole_id(id) else 0
    sandbox = evidence.sandbox(pid) or ("Kata Containers" if "kata" in runtime else "")
    if not start and not sandbox and not pids.start_time(pid):
        raise NotRunning(f"docker has {name}, but its process {pid} has just ended", f"see `docker logs {name}`")
    if not start and not sandbox:
        raise Refused(f"{name}: pid {pid} is not a process of that container here: is the daemon on another machine?")
    found = Container(
        "docker",
        name,
        pid,
        id=id,
        image=str(answer["Config"]["Image"]),
        state="sandboxed" if sandbox else "paused" if state["Paused"] else "running",
        owner=owner,
        start_time=start,
    )
    found.digest = str(answer.get("Image") or "")
    variables = (str(row).partition("=") for row in answer["Config"].get("Env") or [])
    found.settings = {key: value for key, _, value in variables}, str(answer["Config"].get("WorkingDir") or "/")
    return found


def _list(path: str, owner: int, deadline: float) -> list[Container]:
    status, rows = _get(path, "/containers/json", owner, deadline)
    if status != 200:
        raise Refused(f"{path}: HTTP {status}")
    found = []
    shims: dict[str, int] | None = None
    for row in rows:
        id = str(row["Id"])
        pid = _pid_from_file(id)
        if not pid:  # another exec-root, or not readable
            shims = _shims() if shims is None else shims
            pid = _first_child(shims.get(id, 0))
        start = evidence.marked(pid, id, owner=owner) if pid and store.is_whole_id(id) else 0
        if not start:
            try:
                found += _inspect(path, id, owner, deadline)
            except Refused:  # it has stopped meanwhile
                continue
        else:
            sandboxed, paused = evidence.sandbox(pid), row["State"] == "paused"
            state = "sandboxed" if sandboxed else "paused" if paused else "running"
            name = str((row.get("Names") or [f"/{id}"])[0]).lstrip("/")
            image = str(row["Image"])
            found.append(Container("docker", name, pid, id=id, image=image, state=state, owner=owner, start_time=start))
    return found


def _shims() -> dict[str, int]:
    """Container id → pid of its shim, from the shims' arguments: one walk over /proc instead of a request per
    container.
    """
    names = ("containerd-shim-runc-v2", "containerd-shim")
    return {
        evidence.option(arguments, "-id"): pid
        for pid, arguments in evidence.processes_named(*names)
        if trust.accepts(evidence.speaker(pid))
    }


def _first_child(shim: int) -> int:
    """The oldest child: the container's first process; those of ``docker exec`` are younger."""
    return min(evidence.children(shim), key=pids.start_time, default=0) if shim else 0


def _pid_from_file(id: str) -> int:
    for pattern in PID_FILES:
        try:
            return int(store.read(pattern % id, limit=32))
        except (OSError, ValueError):
            continue
    return 0
