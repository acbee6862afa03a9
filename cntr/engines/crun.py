"""crun: one JSON file ``status`` per container, in ``<root>/ID`` (crun(1), --root).

crun uses $XDG_RUNTIME_DIR first: the files of a root that logged in by ssh are in /run/user/0, else in /run.
"""

from __future__ import annotations

from cntr.engines import runc, store
from cntr.engines.container import Container


def roots() -> list[tuple[str, int]]:
    """(state directory, owner's uid): root's, or the caller's own rootless ones."""
    return runc.roots("crun", "/run/user/0/crun")


def find(name: str, deadline: float) -> list[Container]:
    """The container with that id, or the unique prefix of a long one."""
    return runc.search(roots(), name, _read)


def containers(deadline: float) -> list[Container]:
    """All running containers."""
    return runc.search(roots(), None, _read)


def _read(root: str, id: str, owner: int) -> Container | None:
    record = store.load(f"{root}/{id}/status", owner=owner)
    pid, start = int(record["pid"]), int(record["process-start-time"])
    found = runc.started("crun", id, pid, start, owner, str(record.get("rootfs") or ""))
    if found and record.get("bundle"):
        found.spec = f"{record['bundle']}/config.json"
    return found
