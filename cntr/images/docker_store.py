"""Docker's images, through the API; their layers in place (overlay2), or as written by `docker save`."""

from __future__ import annotations

import os
import time

from cntr.engines import Refused, docker, unixhttp
from cntr.errors import printable
from cntr.images import Image, ImageError, Layer, Limits, answers
from cntr.images.unpacked import FREE_EVERY, check_disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

SAVE_SECONDS = 600.0


def images(name: str, deadline: float) -> list[Image]:
    """The images of that name of each daemon on this machine. Raises Refused."""
    found, refused = [], None
    for path, owner in docker.endpoints():
        try:
            status, answer = docker._get(path, f"/images/{quote(name)}/json", owner, deadline)
        except (FileNotFoundError, ConnectionRefusedError):
            refused = refused or Refused(f"nobody listens on {path}")
            continue
        except Refused as error:
            refused = refused or error
            continue
        if status == 200:
            found.append(_image(path, owner, name, answers.documents(answer)))
        elif status != 404:
            refused = refused or Refused(f"{path}: HTTP {status}")
    if not found and refused:
        raise refused
    return found


def quote(name: str) -> str:
    """An image's name as the rest of a URL path: slashes stay."""
    return "/".join(unixhttp.quote(part) for part in name.split("/")).replace("%3A", ":").replace("%40", "@")


def _image(path: str, owner: int, name: str, answer: dict[str, Any]) -> Image:
    id, rootfs = str(answer.get("Id", "")), answer.get("RootFS") or {}
    diff_ids = [str(one) for one in rootfs.get("Layers") or []]
    lower = directories(answer, owner)
    layers = [Layer(diff_id=diff_id) for diff_id in diff_ids]
    if len(lower) == len(layers):
        for layer, directory in zip(layers, reversed(lower)):
            layer.directory = directory
    document = {
        "architecture": answer.get("Architecture"),
        "os": answer.get("Os"),
        "created": answer.get("Created"),
        "config": answer.get("Config") or {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    image = Image(name, "docker", id, document, layers, lower=lower, owner=owner)
    image._blobs = lambda: _saved(path, image)
    return image


def directories(answer: dict[str, Any], owner: int = 0) -> list[str]:
    """The lower directories, topmost first, in an image's GraphDriver; [] for drivers other than overlay2, or if they
    are gone.
    """
    driver = answer.get("GraphDriver") or {}
    data = driver.get("Data") or {}
    if driver.get("Name") != "overlay2" or not isinstance(data, dict) or not data.get("UpperDir"):
        return []
    found = [str(data["UpperDir"]), *str(data.get("LowerDir") or "").split(":")]
    found = [path for path in found if path]
    return found if all(os.path.isdir(path) for path in found) else []


def _saved(path: str, image: Image) -> Image:
    """The archive that the API's /images/ID/get streams, as written by `docker save`, in an unnamed file."""
    import tempfile

    from cntr.images import archive

    deadline = time.monotonic() + SAVE_SECONDS
    stream = tempfile.TemporaryFile(dir="/var/tmp", prefix="cntr-")  # noqa: SIM115  the image's to close
    try:
        download(path, f"/images/{quote(image.id)}/get", stream, deadline)
        result = archive.archive_of(stream, image.reference)
    except BaseException:
        stream.close()
        raise
    result.engine, result.id = "docker", image.id
    return result


def download(path: str, request: str, into: BinaryIO, deadline: float, *, limit: int = Limits().total) -> None:
    """GET a body of at most LIMIT bytes into a file. Raises ImageError, OSError."""
    connection = unixhttp.connect(path, deadline)
    try:
        connection.sendall(f"GET {request} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("ascii"))
        head, size, checked = b"", 0, -FREE_EVERY
        while b"\r\n\r\n" not in head:
            data = connection.recv(1 << 16)
            head += data
            if not data or len(head) > 1 << 20:
                raise ImageError(f"{printable(path)}: not an HTTP answer", "")
        head, _, body = head.partition(b"\r\n\r\n")
        if head.split(b" ")[1:2] != [b"200"]:
            said = head.split(b"\r\n")[0].decode("latin-1")
            raise ImageError(f"{printable(path)}: {printable(said)}", "")
        body = body or connection.recv(1 << 18)  # the head may arrive alone
        while body:
            into.write(body)
            size += len(body)
            if size - checked >= FREE_EVERY and hasattr(into, "name"):  # a file, not an io.BytesIO
                checked = size
                check_disk(into.fileno(), Limits().free + FREE_EVERY)
            if size > limit:
                raise ImageError(f"{printable(path)}: more than {limit} bytes", "")
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            body = connection.recv(1 << 18)
        into.flush()
    finally:
        connection.close()
