"""Podman's pods: ``podman:POD`` if one application container runs in it, ``podman:POD/CONTAINER``.

Since version 5 libpod keeps them in ``<graphroot>/db.sql`` (SQLite). Before, they are in a database that only podman
itself can read, and ``fallback`` asks podman. The pod's infra container only holds its namespaces and is left out.
"""

from __future__ import annotations

import os
import time

from cntr.engines import containers_storage, store
from cntr.engines.container import Container, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

MEMBERS = """SELECT p.ID, p.Name, c.ID, c.Name, s.JSON FROM PodConfig p JOIN PodState s ON s.ID = p.ID
JOIN ContainerConfig c ON c.PodID = p.ID"""
SQLITE_LIMIT_LENGTH = 0  # sqlite3.h; Python has the name since 3.11, if the library was built with it


def answers_to(name: str, pod_id: str, pod: str, container: str) -> bool:
    """Whether NAME means CONTAINER of the pod: the pod's name, id or id prefix, each also with /CONTAINER."""
    head, slash, tail = name.partition("/")
    return store.answers_to(head, pod_id, [pod]) and (not slash or tail == container)


def find(name: str, deadline: float) -> list[Container]:
    """The running containers of the pod that NAME means, of root and of each user, named POD/CONTAINER."""
    members: dict[tuple[str, int, str], str] = {}
    stopped = ""
    for one in containers_storage.stores():
        for pod_id, pod, id, called in _members(one, deadline):
            if answers_to(name, pod_id, pod, called):
                members[one.graphroot, one.owner, id] = f"{pod}/{called}"
                stopped = f"{pod}/{called}" if "/" in name else f"the pod {pod}"
    found = []
    for known in containers_storage.known_containers(lambda row: _key(row) in members) if members else ():
        container = containers_storage.running(known)
        if container:
            container.name = members[_key(known)]
            found.append(container)
    if not found and stopped:
        raise NotRunning(f"podman has {stopped}, but it is not running")
    return found


def _key(known: containers_storage.Known) -> tuple[str, int, str]:
    return known.store.graphroot, known.store.owner, known.id


def _members(one: containers_storage.Store, deadline: float) -> list[tuple[str, ...]]:
    """(pod id, pod, container id, container) of a store's pods, without infra containers."""
    try:
        # The column InfraContainerID exists too, but is always empty.
        return [
            tuple(map(str, row[:4]))
            for row in _query(one, MEMBERS, (), deadline)
            if store.parse(os.fsdecode(row[4])).get("InfraContainerID") != row[2]
        ]
    except (ValueError, TypeError, AttributeError):
        return []  # another schema


def ending(one: containers_storage.Store, id: str, deadline: float) -> tuple[str, int] | None:
    """(state, exit status) of a stopped container, as version 5 stores them; None if unknown."""
    rows = _query(one, "SELECT JSON FROM ContainerState WHERE ID = ?", (id,), deadline)
    try:
        state = store.parse(os.fsdecode(rows[0][0]))
        return STATES.get(state.get("state"), "not running"), int(state.get("exitCode") or 0)
    except (IndexError, ValueError, TypeError, AttributeError):
        return None


def configuration(one: containers_storage.Store, id: str, deadline: float) -> dict[str, Any]:
    """A container's configuration as version 5 stores it (libpod's ContainerConfig); {} if unknown."""
    rows = _query(one, "SELECT JSON FROM ContainerConfig WHERE ID = ?", (id,), deadline)
    try:
        found = store.parse(os.fsdecode(rows[0][0]))
    except (IndexError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


STATES = {1: "created", 2: "created", 4: "stopped", 6: "exited", 7: "removing", 8: "stopping"}  # libpod's define


def _query(
    one: containers_storage.Store, question: str, values: tuple[str, ...], deadline: float
) -> list[tuple[Any, ...]]:
    """Query a store's database; at most ten thousand rows.

    The file may be a hostile user's. SQLite never gets its path, only its bytes, in memory. A schema that computes for
    ever is interrupted at the deadline.
    """
    try:
        image = bytearray(store.read_bytes(f"{one.graphroot}/db.sql", owner=one.owner))
    except OSError:
        return []  # an older libpod, or a store that podman has never used
    import sqlite3  # 3 ms, so only if there is something to read

    # With "write-ahead log" in the header SQLite would want a second file (sqlite.org/fileformat2.html).
    image[18:20] = b"\1\1"
    database = sqlite3.connect(":memory:")
    if hasattr(database, "deserialize"):  # Python 3.11
        database.deserialize(bytes(image))
        return _answer(database, question, values, deadline)
    database.close()
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="cntr-") as file:
        file.write(image)
        file.flush()
        return _answer(sqlite3.connect(f"file:{file.name}?mode=ro&immutable=1", uri=True), question, values, deadline)


def _answer(
    database: sqlite3.Connection, question: str, values: tuple[str, ...], deadline: float
) -> list[tuple[Any, ...]]:
    import sqlite3

    try:
        if hasattr(database, "setlimit"):  # Python 3.11; the result is bounded without it too
            database.setlimit(SQLITE_LIMIT_LENGTH, store.LIMIT)
        database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        database.execute("PRAGMA trusted_schema = OFF")
        return database.execute(question, values).fetchmany(10_000)
    except sqlite3.Error:
        return []  # another schema, or not a database
    finally:
        database.close()
