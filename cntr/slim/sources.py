"""Finds what TARGET means for slim: an engine's image or container, an archive, an OCI directory, a
root directory, a machine.
"""

from __future__ import annotations

import os
import shutil
import sys

from cntr import images
from cntr.errors import AmbiguousTarget, CntrError, TargetNotFound, printable
from cntr.linux.numbers import UNAME
from cntr.slim import machines, overlay
from cntr.slim.leftovers import Guard
from cntr.slim.runs import MACHINES, Image
from cntr.slim.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cntr.slim.runs import Engine

ENGINES = ("docker", "podman", "containerd")
FILES = ("archive", "oci", "dir")
WITHOUT_ENGINE = (*FILES, *machines.KINDS)


class Source:
    """What is split: the image, its tree, and the engine that has it (None: no engine)."""

    def __init__(self, image: Image, engine: Engine | None, tree: Tree) -> None:
        """pid: of a running container; settings: the run-time settings of a container."""
        self.image, self.engine, self.tree = image, engine, tree
        self.pid = 0
        self.container = ""
        self.layer_names: list[list[str]] = []  # the files of each layer, lowest first

    def close(self) -> None:
        """Close the tree."""
        self.tree.close()

    def demand_native(self) -> None:
        """Raise CntrError for an image of another architecture."""
        wanted = str(self.image.config.get("architecture") or "")
        here = MACHINES.get(UNAME, UNAME)
        if wanted and wanted != here:
            raise CntrError(
                f"{printable(self.image.reference)} is an image for {printable(wanted)}, this machine is {here}",
                "slim an image on a machine that can run it",
            )
        system = str(self.image.config.get("os") or "linux")
        if system != "linux":
            raise CntrError(
                f"{printable(self.image.reference)} is an image for {printable(system)}", "slim is for Linux"
            )


def module(name: str) -> Engine:
    """The module that runs images in that engine."""
    __import__(f"cntr.slim.runs.{name}")
    return sys.modules[f"cntr.slim.runs.{name}"]


def find(text: str, guard: Guard, *, running: bool = False) -> Source:
    """Find TARGET (docker:NAME, archive:FILE, …; a bare name is searched in every engine). running: it must be a
    running container.

    Raises TargetNotFound, AmbiguousTarget, CntrError.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix in FILES:
        return of_file(text, guard)
    if colon and prefix in machines.KINDS:
        image, root = machines.find(text)
        image.reference = named("", text)
        return Source(image, None, Tree(root))
    if colon and prefix == "image":
        prefix, colon, rest = rest.partition(":") if rest.partition(":")[0] in ENGINES else ("", "", rest)
        text = rest or text
    if colon and prefix in ENGINES and rest:
        found = _in_engine(module(prefix), rest, guard, running)
        if found is None:
            raise TargetNotFound(
                f"{prefix} has no image and no container {printable(rest[:200])}", f"`{prefix} images` lists them"
            )
        return found
    hits, refused = [], []
    for name in ENGINES:
        if not shutil.which({"containerd": "ctr"}.get(name, name)):
            continue
        try:
            found = _in_engine(module(name), text, guard, running)
        except CntrError as error:
            refused.append(f"{name}: {error.message}")
            continue
        if found is not None:
            hits.append(found)
    if len(hits) > 1:
        for one in hits:
            one.close()
        names = ", ".join(f"{one.image.engine}:{printable(text)}" for one in hits)
        raise AmbiguousTarget(f"{printable(text[:200])}: several engines have it: {names}", "say which")
    if not hits:
        why = f" ({'; '.join(refused)})"[:600] if refused else ""
        hint = "docker:NAME, podman:NAME, containerd:NAME, archive:FILE, oci:DIR, dir:PATH or raw:NAME"
        raise TargetNotFound(f"no engine has an image or a container {printable(text[:200])}{why}", hint)
    return hits[0]


def _in_engine(engine: Engine, name: str, guard: Guard, running: bool) -> Source | None:
    """The image of that name; or the image of the container of that name, with the container's settings."""
    image = None if running else engine.image(name)
    settings: dict[str, Any] = {}
    pid = 0
    if image is None:
        container = engine.container(name)
        if container is None:
            return None
        id, settings, pid = container
        image = engine.image(id)
        if image is None:
            raise CntrError(
                f"the image of {printable(name)} has been removed", "an image that is gone can't be slimmed"
            )
        image.settings = {**image.settings, **{k: v for k, v in settings.items() if k in TOLD and v}}
    if running and not pid:
        raise CntrError(
            f"{printable(name)} does not run", "--watch looks on while a container runs; without it, it is started"
        )
    if image.layers:
        source = Source(image, engine, Tree(overlay.merged(image.layers)))
    else:
        path = os.path.join(guard.directory(), "saved.tar")
        engine.save(image.id, path)
        saved = of_file(f"archive:{path}", guard)
        os.unlink(path)
        source = Source(image, engine, saved.tree)
        source.layer_names, image.layers = saved.layer_names, saved.image.layers
    source.pid, source.container = pid, name if settings else ""
    return source


TOLD = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "Healthcheck", "StopSignal")


def of_file(text: str, guard: Guard) -> Source:
    """An archive, an OCI layout or a directory, unpacked in a private place."""
    with images.find(text) as found:
        image = Image(found.engine, found.reference, found.id, found.document, [])
        if text.startswith("dir:"):
            root = os.open(text.removeprefix("dir:"), os.O_RDONLY | os.O_DIRECTORY)
            source = Source(image, None, Tree(root))
        else:
            place = os.path.join(guard.directory(), "root")
            os.mkdir(place, 0o755)
            root = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            found.unpack(root, devices=os.geteuid() == 0 and "_CONTAINERS_USERNS_CONFIGURED" not in os.environ)
            source = Source(image, None, Tree(root))
            source.layer_names = _names(found)
            image.layers = [layer.digest for layer in found.layers]
    image.reference = named(image.reference, text)
    return source


def _names(found: images.Image) -> list[list[str]]:
    """The files of each layer that COPY or ADD made; other layers' files are not needed."""
    from cntr.images.tar import Reader
    from cntr.slim.rules import application

    history = [
        str(row.get("created_by") or "") for row in found.document.get("history") or [] if not row.get("empty_layer")
    ]
    wanted = application.layers(history) if len(history) == len(found.layers) else []
    names: list[list[str]] = []
    for number, layer in enumerate(found.layers):
        names.append([])
        if number in wanted:
            with layer.open() as stream:
                for entry in Reader(stream, "layer", images.Limits()):
                    if entry.kind != "directory":
                        names[-1].append("/" + os.fsdecode(entry.name).removeprefix("./").lstrip("/"))
    return names


def named(reference: str, text: str) -> str:
    """A name for an image in a file: its own name, else the file's."""
    if reference and "/" not in reference[:1] and not reference.endswith((".tar", ".gz")):
        return reference
    name = os.path.basename(text.partition(":")[2].rstrip("/")).partition(".")[0].lower()
    return f"{''.join(char if char.isalnum() or char in '-_' else '-' for char in name).strip('-_') or 'image'}:latest"


def layer_names(source: Source) -> list[list[str]]:
    """The files of each layer, lowest first."""
    if source.layer_names or source.engine is None or not all(map(os.path.isdir, source.image.layers)):
        return source.layer_names
    from cntr.slim.rules import application

    wanted = application.layers(source.image.history())
    names: list[list[str]] = []
    for number, directory in enumerate(source.image.layers):
        names.append([])
        if number in wanted:
            tree = Tree(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
            try:
                names[-1] = [path for path, entry in tree.scan().entries.items() if not entry.is_directory]
            finally:
                tree.close()
    return names
