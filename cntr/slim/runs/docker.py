"""Docker: images and containers through its client; before a container's first instruction through the API's export,
see ``_hold``.
"""

from __future__ import annotations

import os
import secrets
import time

from cntr.engines import Refused, docker, unixhttp
from cntr.errors import CntrError
from cntr.slim import commands
from cntr.slim.runs import Image, MountWatch, Running, RunOptions, command, mounted, open_root, wait_for_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from cntr.slim.leftovers import Guard

NAME = "docker"
CLI = ["docker"]


def image(reference: str) -> Image | None:
    """The image of that name or id."""
    row = command.inspect(CLI, "image", reference)
    if row is None:
        return None
    layers = command.layers(row)
    if (row.get("GraphDriver") or {}).get("Name") != "overlay2" or not all(map(_is_plain, layers)):
        layers = []  # another storage driver, remapped users, a remote daemon: the image is saved
    tags = row.get("RepoTags") or []
    name = reference if reference in tags or not tags else str(tags[0])
    id = str(row["Id"]).removeprefix("sha256:")
    config = command.config(row, f"{command.store(row, '/overlay2/')}/image/overlay2/imagedb/content/sha256/{id}")
    return Image(NAME, name, id, config, layers)


def _is_plain(path: str) -> bool:
    """Whether a layer's directory is accessible and has the image's own owners."""
    try:
        return "-remap" not in path and os.stat(path).st_uid == 0
    except OSError:
        return False


def container(name: str) -> tuple[str, dict[str, Any], int] | None:
    """(image id, settings, pid) of a container."""
    row = command.inspect(CLI, "container", name)
    if row is None:
        return None
    return str(row["Image"]), dict(row.get("Config") or {}), int(row["State"]["Pid"])


def start(image: str, options: RunOptions, guard: Guard, arm: Callable[[int], None] | None) -> Running:
    """``docker create``, then ``docker start``; ARM gets the root directory in between."""
    name = f"cntr-slim-{os.getpid()}-{secrets.token_hex(3)}"
    flags = ["--network", options.network]
    flags += [word for value in options.environment for word in ("-e", value)]
    flags += [word for value in options.volumes for word in ("-v", value)]
    words = options.command
    if options.entrypoint:
        flags += ["--entrypoint", options.entrypoint[0]]
        words = options.entrypoint[1:] + words
    guard.add(name, [*CLI, "rm", "-f", "-v", name])
    commands.run([*CLI, "create", "--name", name, "--label", "cntr.slim=1", *flags, image, *words])
    running = command.CommandRunning(CLI, name, guard)
    running.stop_signal = options.stop_signal
    hold = _hold(name, arm) if arm else None
    try:
        commands.run([*CLI, "start", name])
    finally:
        if hold is not None:
            hold.close()  # type: ignore[attr-defined]
    running.pid = wait_for_pid(lambda: int(running.state()["Pid"]), running.exited)
    return running


def _hold(name: str, arm: Callable[[int], None]) -> object:
    """Have the daemon mount the container's root before the start, and arm the recorder on it. Closing the result ends
    the hold.

    ``GET /containers/NAME/export`` streams the root as a tar. Until it is read, the daemon keeps the overlay mounted,
    and a start uses the same mount. If the image is so small that the tar fits into the socket's buffers, it is
    unmounted again. Then a watch for the mount arms the recorder at the start, possibly a moment too late (which the
    walk checks).
    """
    row = command.inspect(CLI, "container", name) or {}
    merged = str(((row.get("GraphDriver") or {}).get("Data") or {}).get("MergedDir") or "")
    try:
        path = docker.endpoints()[0][0]
    except (Refused, IndexError) as error:
        raise CntrError(f"docker: {error}", "recording needs the daemon's Unix socket: DOCKER_HOST=unix://…") from None
    deadline = time.monotonic() + 30
    stream = unixhttp.connect(path, deadline)
    owner = unixhttp.peer(stream)[0]
    stream.sendall(f"GET /containers/{unixhttp.quote(name)}/export HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    stream.settimeout(30)
    if not stream.recv(12).startswith(b"HTTP/1."):  # the headers arrive once the root is mounted
        stream.close()
        raise CntrError("docker: no answer to an export", "see the daemon's log")
    if mounted(merged, owner):
        try:
            fd = open_root(merged, owner)
        except OSError:
            fd = -1
        if fd >= 0:
            try:
                arm(fd)
            finally:
                os.close(fd)
            return stream
    stream.close()
    return MountWatch(merged, owner, arm)


def load(write: Callable[[IO[bytes], str], None], reference: str, id: str) -> str:
    """``docker load``; return the image's name."""
    return command.loaded(command.feed([*CLI, "load", "-q"], write, reference)) or reference or id


def save(image: str, path: str) -> None:
    """``docker save``."""
    commands.run([*CLI, "save", "-o", path, image], seconds=commands.SECONDS * 10)


def present(image: str) -> bool:
    """Whether there is such an image."""
    return command.inspect(CLI, "image", image) is not None


def removal(image: str) -> list[str]:
    """``docker rmi``."""
    return [*CLI, "rmi", image]


def tag(image: str, reference: str) -> None:
    """``docker tag``."""
    commands.run([*CLI, "tag", image, reference])
