"""runc, and runtimes built like it: one state.json per container, in ``<root>/ID`` (runc(8), --root)."""

from __future__ import annotations

import os

from cntr.engines import evidence, pids, store, trust
from cntr.engines.container import Container, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[str, str, int], Container | None]

ENGINE = "runc"


def roots(engine: str = ENGINE, *more: str) -> list[tuple[str, int]]:
    """(state directory, owner's uid): root's, or the caller's own rootless ones."""
    usual = [f"/run/{engine}", *more, *(f"{path}/{engine}" for path in store.runtime_dirs())]
    return [(path, trust.owner(path)) for path in store.roots(engine, *usual)]


def find(name: str, deadline: float) -> list[Container]:
    """The container with that id, or the unique prefix of a long one."""
    return search(roots(), name, lambda path, id, owner: read_state(ENGINE, path, id, owner))


def containers(deadline: float) -> list[Container]:
    """All running containers."""
    return search(roots(), None, lambda path, id, owner: read_state(ENGINE, path, id, owner))


def search(where: list[tuple[str, int]], name: str | None, reader: Reader) -> list[Container]:
    """The containers with a directory in one of WHERE: all, or those that match NAME. Raises Refused."""
    found, refused = [], None
    for root, owner in where:
        try:
            ids = [name] if name is not None and store.is_component(name) and os.path.isdir(f"{root}/{name}") else None
            if ids is None:
                ids = [
                    id
                    for id in store.listdir(root)
                    if name is None or (store.is_id_prefix(name) and id.startswith(name))
                ]
        except OSError as error:
            refused = Refused(f"{root}: {error.strerror}")
            continue
        for id in ids:
            try:
                container = reader(root, id, owner)
            except FileNotFoundError:
                continue  # being created or removed
            except OSError as error:
                refused = Refused(f"{root}/{id}: {error.strerror}")
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                refused = Refused(f"{root}/{id}: unreadable state")
                continue
            if container:
                found.append(container)
    if refused and not found:
        raise refused
    return found


def read_state(engine: str, root: str, id: str, owner: int) -> Container | None:
    """The container of ``<root>/ID/state.json``; None if its process is gone: the file outlives it.

    init_process_start is field 22 of /proc/PID/stat as runc saw it, so no other process is mistaken for it.
    """
    record = store.load(f"{root}/{id}/state.json", owner=owner)
    pid, start = int(record["init_process_pid"]), int(record["init_process_start"])
    config = record.get("config") or {}
    found = started(engine, id, pid, start, owner, str(config.get("rootfs") or ""))
    bundle = next((str(label)[7:] for label in config.get("labels") or [] if str(label).startswith("bundle=")), "")
    if found and bundle:
        found.spec = f"{bundle}/config.json"
    return found


def started(engine: str, id: str, pid: int, start: int, owner: int, rootfs: str = "") -> Container | None:
    """The container if PID is still the process that started at START."""
    if not start or pids.start_time(pid) != start:
        return None
    state = "sandboxed" if evidence.sandbox(pid) else evidence.state(pid)
    return Container(engine, id, pid, id=id, state=state, owner=owner, start_time=start, image=rootfs)
