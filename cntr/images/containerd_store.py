"""containerd's images, by ``ctr``: found in every containerd namespace, exported as an OCI archive where they are read."""

from __future__ import annotations

import os
import time

from cntr.engines import containerd, store
from cntr.images import Image, ImageError, stores

NAMESPACES = 64


def ctr(*words: str) -> list[str]:
    """The command line of ctr, which by itself asks at /run/containerd or $CONTAINERD_ADDRESS; else k3s', k0s' or microk8s' containerd."""
    if "CONTAINERD_ADDRESS" not in os.environ and not os.path.exists(f"{containerd.STATES[0]}/containerd.sock"):
        for state in containerd.STATES[1:]:
            for socket in (f"{state}/containerd.sock", f"{state}.sock"):
                if os.path.exists(socket):
                    return ["ctr", "-a", socket, *words]
    return ["ctr", *words]


def images(name: str, deadline: float) -> list[Image]:
    """The images of that name, or NAMESPACE/NAME, in all namespaces. Raises ImageError."""
    seconds = max(1.0, deadline - time.monotonic())
    found = []
    for namespace in stores.run(ctr("namespaces", "ls", "-q"), seconds).split()[:NAMESPACES]:
        if not store.is_component(namespace):
            continue
        wanted = stores.spellings(name)
        if name.startswith(f"{namespace}/"):
            wanted += stores.spellings(name[len(namespace) + 1 :])
        for line in stores.run(ctr("-n", namespace, "images", "ls"), seconds).splitlines()[1:]:
            words = line.split()
            if len(words) > 2 and words[0] in wanted:
                found.append(_exported(namespace, words[0]))
                break
    return found


def _exported(namespace: str, name: str) -> Image:
    """Its configuration is in containerd's content store; an export is the way to both."""
    blank = Image(name, "containerd", "", {}, [])
    image = stores.saved(ctr("-n", namespace, "images", "export", "{}", name), blank)
    manifest = image.document
    if not manifest:
        raise ImageError(f"{image.label()}: no configuration", "")
    return image
