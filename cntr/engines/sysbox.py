"""Sysbox: its runtime sysbox-runc keeps runc's state files in a directory of its own."""

from __future__ import annotations

from cntr.engines import runc, store, trust
from cntr.engines.container import Container


def find(name: str, deadline: float) -> list[Container]:
    """The container with that id or unique prefix."""
    return runc.search(_roots(), name, _read)


def containers(deadline: float) -> list[Container]:
    """All running containers."""
    return runc.search(_roots(), None, _read)


def _roots() -> list[tuple[str, int]]:
    return [(path, trust.owner(path)) for path in store.roots("sysbox", "/run/sysbox-runc")]


def _read(root: str, id: str, owner: int) -> Container | None:
    return runc.read_state("sysbox", root, id, owner)
