"""Images in the stores of Docker, Podman and containerd."""

from __future__ import annotations

import os
import time

from cntr import engines
from cntr.engines import Refused, store
from cntr.errors import AmbiguousTarget, printable
from cntr.images import ENGINES, ID_HEX, Image, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class StoreModule(Protocol):
        """What each store's module offers."""

        def images(self, name: str, deadline: float) -> list[Image]:
            """The images that NAME means, at most one for each store."""


HOSTS = ("docker.io/library/", "docker.io/", "localhost/")


def find(name: str, seconds: float) -> Image:
    """The image of that name, NAME[:TAG][@DIGEST] or an id, in whichever store has it; ENGINE:NAME names the store."""
    head, colon, rest = name.partition(":")
    # A registry on a host of that name would have a port.
    named = head in ENGINES and bool(colon and rest) and not rest.partition("/")[0].isdigit()
    asked = (head,) if named else ENGINES
    name = rest if named else name
    deadline = time.monotonic() + seconds
    known = {entry.name: entry for entry in engines.REGISTRY}
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


def spellings(name: str) -> list[str]:
    """What a store may call NAME: with the default tag, the default registries, as it is."""
    if "@" in name:
        return [name, *(host + name for host in HOSTS)]
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return [tagged, *(host + tagged for host in HOSTS)]


def is_id(name: str, id: str) -> bool:
    """Whether NAME is the image's id (64 hexadecimal digits) or a beginning of it of twelve digits or more."""
    value = name.removeprefix("sha256:")
    return 12 <= len(value) <= 64 and set(value) <= ID_HEX and id.removeprefix("sha256:").startswith(value)


def run(argv: list[str], seconds: float, limit: int = 8 << 20) -> str:
    """The output of an engine's command. Raises ImageError."""
    import subprocess

    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=max(1.0, seconds), check=False
        )
    except FileNotFoundError:
        raise ImageError(f"{argv[0]}: not installed", f"install {argv[0]}") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{' '.join(argv[:4])}: no answer within {seconds:.0f} s", "") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ImageError(f"{argv[0]}: {printable(last[0][:300])}", f"try `{printable(' '.join(argv))}`")
    return os.fsdecode(done.stdout[:limit])


def saved(argv: list[str], image: Image, seconds: float = 600.0) -> Image:
    """The image that ARGV writes to the file whose name is put for ``{}``. Raises ImageError."""
    import tempfile

    from cntr.images import archive

    directory = tempfile.mkdtemp(prefix="cntr-save-", dir="/var/tmp")
    path = f"{directory}/image.tar"
    try:
        run([path if word == "{}" else word for word in argv], seconds)
        stream = open(path, "rb")  # noqa: SIM115  the image's to close
    finally:
        if os.path.exists(path):
            os.unlink(path)
        os.rmdir(directory)
    result = archive.archive_of(stream, image.reference)
    result.engine, result.id = image.engine, image.id
    return result


def documents(value: object) -> dict[str, Any]:
    """VALUE, if it is a JSON object. Raises ImageError."""
    if not isinstance(value, dict):
        raise ImageError("an answer that is no JSON object", "is the engine's version a known one?")
    return value


def parse(text: str, what: str) -> Any:
    """A JSON text of an engine's. Raises ImageError."""
    try:
        return store.parse(text)
    except ValueError as error:
        raise ImageError(f"{what}: {printable(str(error))}", "its store is damaged") from None
