"""Podman's images, by the files of containers/storage: ``overlay-images/images.json``, ``overlay-layers/layers.json``."""

from __future__ import annotations

import binascii
import os

from cntr.engines import containers_storage, store
from cntr.errors import printable
from cntr.images import Image, ImageError, Layer, answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DRIVER = "overlay"


def images(name: str, deadline: float) -> list[Image]:
    """The images of that name or id in the system's store and each user's."""
    found = []
    for one in containers_storage.stores():
        try:
            rows = store.load(f"{one.graphroot}/{DRIVER}-images/images.json", owner=one.owner)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ImageError(f"{printable(one.graphroot)}: {printable(str(error))}", "") from None
        row = _choose(rows, name)
        if row:
            found.append(_image(one, row, name))
    return found


def _choose(rows: object, name: str) -> dict[str, Any] | None:
    wanted = answers.spellings(name)
    best = None
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or not str(row.get("id", "")).isalnum():
            continue
        names = [str(one) for one in row.get("names") or []]
        if name in names:
            return row
        if set(wanted) & set(names) or answers.is_id(name, str(row["id"])):
            best = row
    return best


def _image(one: containers_storage.Store, row: dict[str, Any], name: str) -> Image:
    id = str(row["id"])
    key = binascii.b2a_base64(f"sha256:{id}".encode(), newline=False).decode()
    path = f"{one.graphroot}/{DRIVER}-images/{id}/={key}"
    try:
        document = answers.documents(answers.parse(store.read(path, owner=one.owner, limit=8 << 20), path))
    except OSError as error:
        raise ImageError(
            f"podman image {printable(name)}: its configuration: {error.strerror}: {printable(path)}", ""
        ) from None
    chain = layer_chain(one, str(row.get("layer", "")))
    layers = [
        Layer(
            digest=str(item.get("compressed-diff-digest") or ""),
            diff_id=str(item.get("diff-digest") or ""),
            directory=f"{one.graphroot}/{DRIVER}/{item['id']}/diff",
        )
        for item in chain
    ]
    lower = [layer.directory for layer in reversed(layers)]
    lower = lower if all(os.path.isdir(path) for path in lower) else []
    image = Image(name, "podman", f"sha256:{id}", document, layers, lower=lower, owner=one.owner)
    image._blobs = lambda: _saved(image, id)
    return image


def _saved(image: Image, id: str) -> Image:
    if image.owner not in (0, os.geteuid()):
        raise ImageError(
            f"{image.label()}: in the store of uid {image.owner}, as whom nothing is run here",
            "as that user: `podman save -o FILE`, then archive:FILE",
        )
    return answers.saved(["podman", "save", "--quiet", "--format", "oci-archive", "--output", "{}", id], image)


def layer_chain(one: containers_storage.Store, top: str) -> list[dict[str, Any]]:
    """The rows of the layers from the lowest to TOP. Raises ImageError."""
    known: dict[str, dict[str, Any]] = {}
    for file in ("layers.json", "volatile-layers.json"):
        try:
            rows = store.load(f"{one.graphroot}/{DRIVER}-layers/{file}", owner=one.owner)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{printable(one.graphroot)}: {file}: {printable(str(error))}", "its store is damaged"
            ) from None
        known |= {
            str(row["id"]): row for row in rows or () if isinstance(row, dict) and str(row.get("id", "")).isalnum()
        }
    chain: list[dict[str, Any]] = []
    while top:
        row = known.pop(top, None)  # removed, so that a cyclic chain ends
        if row is None:
            raise ImageError(f"layer {printable(top[:64])}: not in {printable(one.graphroot)}", "its store is damaged")
        chain.insert(0, row)
        top = str(row.get("parent") or "")
    return chain
