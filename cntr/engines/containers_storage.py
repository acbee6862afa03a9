"""containers/storage: the files in which Podman, Buildah and CRI-O keep their containers, root's and every user's.

The name is in ``<graphroot>/<driver>-containers/containers.json``, the pid in
``<runroot>/<driver>-containers/ID/userdata/pidfile``.
"""

from __future__ import annotations

import os

from cntr.engines import evidence, store, trust
from cntr.engines.container import Container, Refused
from cntr.engines.store import is_whole_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEM_CONF = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")
INDEXES = ("containers.json", "volatile-containers.json")


class Store:
    """One containers/storage: where its files are, and its owner's uid (0: the system's)."""

    __slots__ = ("graphroot", "owner", "runroots")

    def __init__(self, graphroot: str, runroots: list[str], owner: int) -> None:
        self.graphroot, self.runroots, self.owner = graphroot, runroots, owner


class Known:
    """A container in the store's index: its id, names, image, and the driver's directory."""

    __slots__ = ("digest", "directory", "id", "image", "layer", "names", "store")

    def __init__(self, store: Store, directory: str, row: dict[str, object]) -> None:
        """Parse a row of containers.json. Raises KeyError, ValueError, TypeError if it is malformed."""
        self.store, self.directory, self.id = store, directory, str(row["id"])
        names = row.get("names") or []
        self.names = [str(name) for name in names] if isinstance(names, list) else []
        metadata = str(row.get("metadata") or "")
        self.image = str(parse_metadata(metadata).get("image-name") or "")
        self.layer = str(row.get("layer") or "")
        self.digest = f"sha256:{row['image']}" if is_whole_id(str(row.get("image"))) else ""
        if not is_whole_id(self.id) or (self.layer and not is_whole_id(self.layer)):
            raise ValueError("an id that is no id")

    def is_foreign(self) -> bool:
        """Whether the row is CRI-O's or Buildah's: they use the same store."""
        if any(name.startswith("k8s_") for name in self.names):
            return True
        return os.path.exists(f"{self.store.graphroot}/{self.directory}/{self.id}/userdata/buildah.json")

    def pid(self) -> int:
        """The pid in the container's pidfile, 0 if there is none.

        Up to version 4 Podman gives the file's directory to the root of the container's user namespace. Then it is the
        first child of its monitor.
        """
        for runroot in self.store.runroots:
            path = f"{runroot}/{self.directory}/{self.id}/userdata/pidfile"
            try:
                return int(store.read(path, owner=self.store.owner, limit=32))
            except PermissionError:
                return monitored(self.id, self.store.owner)
            except (OSError, ValueError):
                continue
        return 0


def monitored(id: str, owner: int) -> int:
    """The first process that OWNER's conmon(8) of the container ID started and that has not ended, else 0."""
    for monitor, arguments in evidence.processes_named("conmon"):
        executes = "-e" in arguments or "--exec" in arguments  # `podman exec`
        if evidence.option(arguments, "-c") == id and not executes and evidence.speaker(monitor) == owner:
            return min(evidence.children(monitor), key=evidence.start_time, default=0)
    return 0


def parse_metadata(text: str) -> dict[str, object]:
    """The JSON object in a row's ``metadata``; empty if it is another engine's private text."""
    try:
        value = store.parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def stores() -> list[Store]:
    """The system's store; for a user also the user's own; and that of $CONTAINERS_STORAGE_CONF."""
    found = []
    me = os.geteuid()
    own = os.environ.get("CONTAINERS_STORAGE_CONF", "")
    if own and trust.accepts(trust.owner_or_anybody(own)):
        found.append(_store(own, "", [], trust.owner(own)))
    if me == 0:
        conf = next((path for path in SYSTEM_CONF if os.path.exists(path)), "")
        found.append(_store(conf, "/var/lib/containers/storage", ["/run/containers/storage"], 0))
    elif (paths := store.runtime_dirs()) and (home := store.home(me)):
        # The home is accessed only if there is a runtime directory: it may be a slow automount.
        conf, graphroot = f"{home}/.config/containers/storage.conf", f"{home}/.local/share/containers/storage"
        found.append(_store(conf, graphroot, [f"{path}/containers" for path in paths], me))
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
    """The rows of all stores' indexes for which WANTED is true. Raises Refused if the only store cannot be read."""
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


def running(known: Known) -> Container | None:
    """The container if it runs; None if it has stopped, or the file is stale or forged."""
    name = known.names[0] if known.names else known.id[:12]
    pid = known.pid()
    found = checked("podman", name, pid, known.id, known.image, known.store.owner) if pid else None
    if found:
        found.digest = known.digest
        found.spec = f"{known.store.graphroot}/{known.directory}/{known.id}/userdata/config.json"
    return found


def checked(engine: str, name: str, pid: int, id: str, image: str, owner: int) -> Container | None:
    """The container if PID has the mark of its ID; None if the file is stale or forged."""
    start = evidence.marked(pid, id, owner=owner) if store.is_whole_id(id) else 0
    if not start:
        return None
    state = "sandboxed" if evidence.sandbox(pid) else evidence.state(pid)
    return Container(engine, name, pid, id=id, image=image, state=state, owner=owner, start_time=start)
