"""containerd's images, through ``ctr``: found in every containerd namespace, exported as an OCI archive when read."""

from __future__ import annotations

import os
import time

from cntr.engines import containerd, store, trust
from cntr.errors import printable
from cntr.images import Image, ImageError, answers

NAMESPACES = 64


def own_socket() -> str:
    """The socket that $CONTAINERD_ADDRESS names, "" if none. Who listens there says where files are. Raises ImageError."""
    path = os.environ.get("CONTAINERD_ADDRESS", "").removeprefix("unix://")
    if path and os.path.exists(path) and not trust.accepts(owner := trust.owner_or_anybody(path)):
        raise ImageError(f"CONTAINERD_ADDRESS={printable(path)}: {store.written_by(owner)}", "name root's socket")
    return path


def ctr(*words: str, socket: str = "") -> list[str]:
    """A ctr command line. socket: "" for $CONTAINERD_ADDRESS or a usual one. Raises ImageError if no daemon listens:
    ctr would wait.
    """
    usual = [
        f"{state}{name}"
        for state in containerd.STATES
        for name in ("/containerd.sock", ".sock")
        if "docker" not in state
    ]
    asked = [socket or own_socket()]
    asked = asked if asked[0] else usual
    found = next((path for path in asked if os.path.exists(path)), "")
    if not found:
        raise ImageError(f"nobody listens on {printable(asked[0])}", "$CONTAINERD_ADDRESS names its socket")
    return ["ctr", "-a", found, *words]


def images(name: str, deadline: float) -> list[Image]:
    """The images of that name, or NAMESPACE/NAME, in all namespaces. Raises ImageError."""
    seconds = max(1.0, deadline - time.monotonic())
    found = []
    for namespace in answers.run(ctr("namespaces", "ls", "-q"), seconds).split()[:NAMESPACES]:
        if not store.is_component(namespace):
            continue
        wanted = answers.spellings(name)
        if name.startswith(f"{namespace}/"):
            wanted += answers.spellings(name[len(namespace) + 1 :])
        for line in answers.run(ctr("-n", namespace, "images", "ls"), seconds).splitlines()[1:]:
            words = line.split()
            if len(words) > 2 and words[0] in wanted:
                found.append(_exported(namespace, words[0]))
                break
    return found


def _exported(namespace: str, name: str) -> Image:
    """An image from an export, since its configuration is in containerd's content store."""
    blank = Image(name, "containerd", "", {}, [])
    image = answers.saved(ctr("-n", namespace, "images", "export", "{}", name), blank)
    manifest = image.document
    if not manifest:
        raise ImageError(f"{image.label()}: no configuration", "")
    return image
