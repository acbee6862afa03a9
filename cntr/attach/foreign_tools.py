"""Tools that are not this machine's: another container's, an image's, or those of a directory."""

from __future__ import annotations

import os

from cntr import engines
from cntr.attach.target import Target
from cntr.attach.tools import DEFAULT_PATH, Tools
from cntr.engines import Container
from cntr.errors import CntrError, TargetNotFound, printable
from cntr.linux.host import VIEW


def open_tools(source: str) -> Tools:
    """Open SOURCE: a root directory (a path with a slash), an image, or a TARGET. Raises CntrError."""
    if "/" in source and ":" not in source.partition("/")[0]:
        return _directory(source)
    if source.startswith(("image:", "archive:", "oci:", "dir:")):
        return _image(source)
    try:
        container = engines.resolve(source)
    except TargetNotFound as error:
        if os.path.isdir(source):
            error.hint = f"a directory of that name exists: --tools ./{printable(source)}"
        raise
    if container.rootfs:
        return _directory(container.rootfs)
    engines.verify(container)
    target = Target(container, impatient=True)
    path = target.environment.get("PATH") or DEFAULT_PATH
    tools = Tools(target.label, target.root_fd, target.namespaces.get("mnt", -1), path, target)
    tools.container = container
    return tools


def _image(source: str) -> Tools:
    """Open an image's tree from the cache. Raises CntrError."""
    if source.startswith("image:"):
        with VIEW:
            tools = _unpacked(source)
        tools.mnt_fd = VIEW.mount_namespace()
        return tools
    return _unpacked(source)


def _unpacked(source: str) -> Tools:
    from cntr import images
    from cntr.images import cache

    with images.find(source) as image:
        if image.owner not in (0, os.geteuid()):
            raise CntrError(
                f"--tools {printable(source)}: it is in the store of uid {image.owner}",
                "another user's programs are not run as yours: pull the image yourself",
            )
        if image.engine == "dir":
            return _directory(image.lower_directories()[0])
        held = cache.open_tree(image)
    try:
        tools = _directory(held.path)
    except BaseException:
        held.close()
        raise
    tools.held, tools.label = held.close, printable(source)
    kind = image.engine if image.engine in ("archive", "oci") else "image"
    tools.container = Container(kind, image.reference, 0, image=image.reference, state="image", owner=image.owner)
    settings = image.config.get("Env")
    for setting in settings if isinstance(settings, list) else ():
        if str(setting).startswith("PATH=/"):
            tools.path = str(setting)[5:]
    return tools


def _directory(path: str) -> Tools:
    try:
        root_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CntrError(
            f"--tools {printable(path)}: {error.strerror}",
            "give `host`, a running container, or the directory of a root filesystem",
        ) from None
    tools = Tools(printable(os.path.abspath(path)), root_fd, -1, DEFAULT_PATH)
    from cntr.linux import opened

    tools.container = Container("dir", opened.place_of(root_fd) or "of another mount namespace", 0)
    return tools
