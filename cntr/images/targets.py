"""TARGET → a container that is there for the session: a stand-in for what does not run, or for an image."""

from __future__ import annotations

import time

from cntr import images
from cntr.engines import Container, Refused, registry
from cntr.errors import AmbiguousTarget, CntrError, printable
from cntr.images import ENGINES, ImageError, blueprint
from cntr.images.standin import StandIn

SECONDS = 10.0
MODULES = {"docker": "docker_stopped", "podman": "podman_stopped", "containerd": "containerd_stopped"}
ALIASES = {
    "k8s": "containerd",
    "kubernetes": "containerd",
    "cri": "containerd",
    "nerdctl": "containerd",
    "ctr": "containerd",
}


def find(target: str) -> Blueprint | None:
    """The blueprint of an image, or of the one container of that name that does not run; None where nobody has one. Raises CntrError."""
    if images.is_reference(target):
        return _image(target)
    prefix, colon, rest = target.partition(":")
    engine = ALIASES.get(prefix, prefix)
    asked, name = ((engine,), rest) if colon and engine in ENGINES else (ENGINES, target)
    deadline = time.monotonic() + SECONDS
    known = {entry.name: entry for entry in registry.REGISTRY}
    found: list[Blueprint] = []
    failed: CntrError | None = None
    for engine in asked:
        if len(asked) > 1 and not known[engine].present():
            continue
        try:
            found += module(engine).find(name, deadline)
        except ImageError as error:
            failed = failed or error
        except (Refused, OSError):
            continue  # it has said so already, where it was asked for what runs
    exact = [one for one in found if name in (one.name, one.id)] or found
    if len(exact) > 1:
        listed = ", ".join(f"{one.label()} ({printable(one.id[:12])})" for one in exact[:8])
        raise AmbiguousTarget(
            f"{printable(target)}: {len(exact)} containers answer to this name: {listed}", "say engine:name, or an id"
        )
    if not exact and failed:
        raise failed
    return exact[0] if exact else None


def module(engine: str) -> StoppedModule:
    """The module that knows ENGINE's containers that do not run."""
    if engine == "docker":
        from cntr.images import docker_stopped

        return docker_stopped
    if engine == "podman":
        from cntr.images import podman_stopped

        return podman_stopped
    from cntr.images import containerd_stopped

    return containerd_stopped


def _image(reference: str) -> Blueprint:
    image = images.find(reference)
    try:
        made = blueprint.of_image(image)
        if image.engine == "dir":
            made.user = "0"
        made.lower = image.lower_directories()
        if made.lower and image.engine == "podman":
            made.overlay = {"userxattr": ""} if image.owner else {"metacopy": "on"}
        if not made.lower:
            from cntr.images import cache

            held = cache.open_tree(image)
            made.lower = [held.path]
            made.closers.append(held.close)
        return made
    finally:
        image.close()


def hold(
    target: str, *, network: str = "", write: bool = False, say: Callable[[str], None]
) -> tuple[Container, StandIn] | None:
    """A stand-in for TARGET and the Container of it, None where nobody knows it. The caller closes the stand-in. Raises CntrError."""
    made = find(target)
    if made is None:
        return None
    if write and made.state == "image":
        made.close()
        raise CntrError(f"{made.label()}: an image is never written to", "leave out --write: changes are thrown away")
    stand_in = StandIn(made, network=network, write=write, say=say)
    container = Container(
        made.engine,
        made.name,
        stand_in.pid,
        id=made.id,
        image=made.image,
        state=made.state,
        owner=made.owner,
        start_time=stand_in.start_time,
    )
    return container, stand_in


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from cntr.images.blueprint import Blueprint

    class StoppedModule(Protocol):
        """What each engine's module offers."""

        def find(self, name: str, deadline: float) -> list[Blueprint]:
            """Those that NAME means."""

        def stopped(self, deadline: float) -> list[Blueprint]:
            """All."""
