"""Podman: rootful, and every user's rootless containers, by the state files of containers/storage and conmon.

The name is in ``<graphroot>/<driver>-containers/containers.json``, the pid in ``<runroot>/<driver>-containers/ID/userdata/
pidfile``. Containers of a store elsewhere (``--root``, a home directory that can't be read) are found by their monitor:
conmon's arguments hold name, id and pidfile (conmon(8)).
"""

from __future__ import annotations

import os

from cntr.engines import Container, NotRunning, Refused, evidence, store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEM_CONF = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")


class Store:
    """One containers/storage: where its files are, and whose it is (0: the system's)."""

    __slots__ = ("graphroot", "owner", "runroots")

    def __init__(self, graphroot: str, runroots: list[str], owner: int) -> None:
        """Keep the paths."""
        self.graphroot, self.runroots, self.owner = graphroot, runroots, owner


class Known:
    """A container as the store's index has it: its id, names, image, and the driver's directory it was in."""

    __slots__ = ("directory", "id", "image", "layer", "names", "store")

    def __init__(self, store: Store, directory: str, row: dict[str, object]) -> None:
        """Take over a row of containers.json. Raises KeyError, ValueError, TypeError for what is not one."""
        self.store, self.directory, self.id = store, directory, str(row["id"])
        names = row.get("names") or []
        self.names = [str(name) for name in names] if isinstance(names, list) else []
        metadata = str(row.get("metadata") or "")
        self.image = str(parse_metadata(metadata).get("image-name") or "")
        self.layer = str(row.get("layer") or "")
        if not self.id.isalnum() or (self.layer and not self.layer.isalnum()):
            raise ValueError("an id that is no id")

    def is_foreign(self) -> bool:
        """Whether the row is CRI-O's or Buildah's: they keep theirs in the same store."""
        if any(name.startswith("k8s_") for name in self.names):
            return True
        return os.path.exists(f"{self.store.graphroot}/{self.directory}/{self.id}/userdata/buildah.json")

    def pid(self) -> int:
        """The pid in the container's pidfile, 0 where there is none."""
        for runroot in self.store.runroots:
            path = f"{runroot}/{self.directory}/{self.id}/userdata/pidfile"
            try:
                return int(store.read(path, owner=self.store.owner, limit=32))
            except (OSError, ValueError):
                continue
        return 0


def parse_metadata(text: str) -> dict[str, object]:
    """The JSON object in a row's ``metadata``; empty for another engine's private text."""
    try:
        value = store.parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def answers_to(name: str, id: str, names: list[str]) -> bool:
    """Whether NAME is one of NAMES, the ID, or a beginning of it."""
    return name in names or name == id or (store.is_id_prefix(name) and id.startswith(name))


def find(name: str, deadline: float) -> list[Container]:
    """The running containers of that name or id prefix, of root and of each user."""
    found, stopped = [], ""
    for known in known_containers(lambda row: answers_to(name, row.id, row.names)):
        if known.is_foreign():
            continue
        container = running(known)
        if container:
            found.append(container)
        else:
            stopped = known.names[0] if known.names else known.id[:12]
    if not found and stopped:
        raise NotRunning(f"podman has {stopped}, but it is not running")
    return found


def find_by_process(name: str, deadline: float) -> list[Container]:
    """The containers of that name or id prefix whose store is not where stores usually are; then those of a pod."""
    from cntr.engines import pods

    elsewhere = [found for found in by_monitor("podman") if answers_to(name, found.id, [found.name])]
    return elsewhere or pods.find(name, deadline)


def containers(deadline: float) -> list[Container]:
    """All running containers of root and of each user."""
    rows = known_containers(lambda row: not row.is_foreign())
    found = [container for known in rows if (container := running(known))]
    ids = {container.id for container in found}
    return found + [container for container in by_monitor("podman") if container.id not in ids]


def stores() -> list[Store]:
    """The system's store and each user's; a user who is not root has only their own."""
    found = []
    own = os.environ.get("CONTAINERS_STORAGE_CONF", "")
    if own:
        found.append(_store(own, "", [], os.geteuid()))
    if os.geteuid() == 0:
        conf = next((path for path in SYSTEM_CONF if os.path.exists(path)), "")
        found.append(_store(conf, "/var/lib/containers/storage", ["/run/containers/storage"], 0))
    runroots: dict[int, list[str]] = {}
    for uid, path in store.runtime_dirs():
        runroots.setdefault(uid, []).append(f"{path}/containers")
    for uid, paths in runroots.items():
        # The home is touched only where there is a runtime directory: it may be an automount that takes its time.
        home = store.home(uid)
        if home:
            found.append(
                _store(f"{home}/.config/containers/storage.conf", f"{home}/.local/share/containers/storage", paths, uid)
            )
    return found


def _store(conf: str, graphroot: str, runroots: list[str], owner: int) -> Store:
    try:
        text = store.read(conf, owner=owner, limit=store.MEGABYTE) if conf else ""
    except OSError:
        text = ""
    configured = store.setting(text, "storage", "runroot")
    return Store(
        store.setting(text, "storage", "graphroot") or graphroot,
        [configured, *runroots] if configured else runroots,
        owner,
    )


def known_containers(wanted: Callable[[Known], bool]) -> list[Known]:
    """The rows of all stores' indexes that are WANTED. Raises Refused if the only store there is can't be read."""
    found, refused = [], ""
    for one in stores():
        try:
            directories = [name for name in store.listdir(one.graphroot) if name.endswith("-containers")]
        except OSError as error:
            refused = f"{one.graphroot}: {error.strerror}"
            continue
        indexes = [f"{one.graphroot}/{name}/{file}" for name in directories for file in INDEXES]
        # A transient store (containers-storage.conf(5)) keeps its index beside the pid files.
        indexes += [f"{runroot}/{name}/{INDEXES[1]}" for runroot in one.runroots for name in directories]
        for index in indexes:
            try:
                rows = store.load(index, owner=one.owner)
                found += [row for row in (Known(one, index.split("/")[-2], row) for row in rows or []) if wanted(row)]
            except FileNotFoundError:
                continue
            except OSError as error:
                refused = f"{index}: {error.strerror}"
            except (ValueError, KeyError, TypeError, AttributeError):
                refused = f"{index}: not a list of containers"
    if refused and not found:
        raise Refused(refused)
    return found


INDEXES = ("containers.json", "volatile-containers.json")


def running(known: Known) -> Container | None:
    """The container, if it runs; None for one that has stopped, and for a stale or a forged file."""
    name = known.names[0] if known.names else known.id[:12]
    pid = known.pid()
    return checked("podman", name, pid, known.id, known.image, known.store.owner) if pid else None


def checked(engine: str, name: str, pid: int, id: str, image: str, owner: int) -> Container | None:
    """The container, if PID bears its ID's mark and is its OWNER's own process; None for a stale or a forged file."""
    start = evidence.marked(pid, id)
    if not start or (owner and not evidence.belongs_to(pid, owner)):
        return None
    state = "sandboxed" if evidence.sandbox(pid) else evidence.state(pid)
    return Container(engine, name, pid, id=id, image=image, state=state, owner=owner, start_time=start)


def by_monitor(engine: str) -> list[Container]:
    """The containers whose conmon runs, by its arguments: -c ID -n NAME -p PIDFILE; its uid is the owner.

    CRI-O's monitors are conmons too; theirs are known by the name, k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
    """
    found = []
    for monitor, arguments in evidence.processes_named("conmon"):
        owner, id, name = evidence.owner_of(monitor), evidence.option(arguments, "-c"), evidence.option(arguments, "-n")
        if name.startswith("k8s_") != (engine == "cri-o") or owner < 0:
            continue
        if "-e" in arguments or "--exec" in arguments:
            continue  # the monitor of a `podman exec`: the same id and name, but not the container's first process
        try:
            pid = int(_pid_of(evidence.option(arguments, "-p"), owner, monitor))
        except (OSError, ValueError):
            continue  # gone meanwhile, or not one of them
        container = checked(engine, name or id[:12], pid, id, "", owner)
        if container:
            found.append(container)
    return found


def _pid_of(pidfile: str, owner: int, monitor: int) -> str:
    """The text of the pid file, as the monitor sees its path: it may live in a mount namespace of its own."""
    try:
        return store.read(pidfile, owner=owner, limit=32)
    except FileNotFoundError:
        return store.read(f"/proc/{monitor}/root{pidfile}", owner=owner, limit=32)
