"""Images in the stores of Docker, Podman and containerd."""

from __future__ import annotations

import os
import time

from cntr.engines import Refused, registry
from cntr.errors import AmbiguousTarget, printable
from cntr.images import ENGINES, Image, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class StoreModule(Protocol):
        """The functions of each store's module."""

        def images(self, name: str, deadline: float) -> list[Image]:
            """The images that NAME means, at most one per store."""


def find(name: str, seconds: float) -> Image:
    """The image NAME[:TAG][@DIGEST] or an id, in whichever store has it; ENGINE:NAME selects the store."""
    head, colon, rest = name.partition(":")
    # A registry on a host with an engine's name would have a port.
    named = head in ENGINES and bool(colon and rest) and not rest.partition("/")[0].isdigit()
    asked = (head,) if named else ENGINES
    name = rest if named else name
    deadline = time.monotonic() + seconds
    known = {entry.name: entry for entry in registry.REGISTRY}
    found: list[Image] = []
    said = []
    for engine in asked:
        if not named and not known[engine].present():
            said.append(f"{engine}: not on this machine")
            continue
        try:
            answer = _module(engine).images(name, deadline)
        except (Refused, ImageError, OSError) as error:
            said.append(f"{engine}: {printable(str(error))}")
            continue
        if not answer:
            said.append(f"{engine}: has none of that name")
        found += answer
    own = [image for image in found if image.owner in (0, os.geteuid())] or found
    distinct = list({image.id: image for image in reversed(own)}.values())[::-1]
    for image in found:
        if image not in distinct[:1]:
            image.close()
    if len(distinct) > 1:
        listed = ", ".join(f"{image.engine}:{name} ({printable(image.id[7:19])})" for image in distinct[:8])
        raise AmbiguousTarget(
            f"image:{printable(name)}: {len(distinct)} images answer to it: {listed}", "say image:ENGINE:NAME"
        )
    if not distinct:
        raise ImageError(
            f"image:{printable(name)}: no such image ({'; '.join(said)})",
            "`docker images`, `podman images`, `ctr images ls`",
        )
    return distinct[0]


def _module(engine: str) -> StoreModule:
    if engine == "docker":
        from cntr.images import docker_store

        return docker_store
    if engine == "podman":
        from cntr.images import podman_store

        return podman_store
    from cntr.images import containerd_store

    return containerd_store
