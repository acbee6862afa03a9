"""Docker: images and containers by its command; before a container's first instruction by its API's export, see ``_hold``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import time

from cntr.engines import Refused, docker, unixhttp
from cntr.errors import CntrError, printable
from cntr.slim import commands
from cntr.slim.runs import Image, MountWatch, Running, RunOptions, mounted, open_root, wait_for_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from cntr.slim.leftovers import Guard

NAME = "docker"
CLI = ["docker"]


def _inspect(kind: str, name: str) -> dict[str, Any] | None:
    """``docker KIND inspect NAME``; None if there is none of that name."""
    if not name or name.startswith("-"):
        return None
    try:
        rows = commands.load([*CLI, kind, "inspect", name])
    except commands.Failed as error:
        if "no such" in error.said.lower() or "not found" in error.said.lower() or "invalid reference" in error.said:
            return None
        raise
    return dict(rows[0]) if rows else None


def image(reference: str) -> Image | None:
    """The image of that name or id."""
    row = _inspect("image", reference)
    if row is None:
        return None
    driver = row.get("GraphDriver") or {}
    data = driver.get("Data") or {}
    layers = [data.get("UpperDir") or "", *str(data.get("LowerDir") or "").split(":")]
    layers = [layer for layer in reversed(layers) if layer]
    if driver.get("Name") != "overlay2" or not all(map(_is_plain, layers)):
        layers = []  # another storage driver, users remapped, a daemon whose files are not here: the image is saved
    tags = row.get("RepoTags") or []
    name = reference if reference in tags or not tags else str(tags[0])
    return Image(NAME, name, str(row["Id"]).removeprefix("sha256:"), _config(row), layers)


def _is_plain(path: str) -> bool:
    """Whether a layer's directory is to be seen here, its owners the image's own."""
    try:
        return "-remap" not in path and os.stat(path).st_uid == 0
    except OSError:
        return False


def _config(row: dict[str, Any]) -> dict[str, Any]:
    """The image's configuration: the very file where it can be read, proved by its digest; else what inspect tells of it."""
    id = str(row["Id"]).removeprefix("sha256:")
    root = str(((row.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")).partition("/overlay2/")[0]
    try:
        with open(f"{root}/image/overlay2/imagedb/content/sha256/{id}", "rb") as stream:
            data = stream.read(64 << 20)
        if hashlib.sha256(data).hexdigest() == id:
            found = json.loads(data)
            if isinstance(found, dict):
                return found
    except (OSError, ValueError):
        pass
    keys = {"Architecture": "architecture", "Os": "os", "Created": "created", "Author": "author", "Config": "config"}
    return {name: row[key] for key, name in keys.items() if row.get(key)}


def container(name: str) -> tuple[str, dict[str, Any], int] | None:
    """(image id, settings, pid) of a container."""
    row = _inspect("container", name)
    if row is None:
        return None
    return str(row["Image"]), dict(row.get("Config") or {}), int(row["State"]["Pid"])


class DockerRunning(Running):
    """A container of Docker's."""

    def __init__(self, name: str, guard: Guard) -> None:
        """name: of the container."""
        self.name, self.guard = name, guard

    def state(self) -> dict[str, Any]:
        """What inspect says of its state."""
        row = _inspect("container", self.name)
        if row is None:
            raise CntrError(f"docker: the container {self.name} has been removed by somebody", "start again")
        return dict(row["State"])

    def exited(self) -> int | None:
        """Its exit status."""
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            return None
        state = self.state()
        return None if state["Running"] or state["Status"] == "created" else int(state["ExitCode"])

    def log(self) -> str:
        """The last lines."""
        return commands.run([*CLI, "logs", "--tail", "20", self.name], both=True)

    def exec(self, words: list[str], seconds: float) -> str:
        """``docker exec``."""
        return commands.run([*CLI, "exec", self.name, *words], seconds=seconds, both=True)

    def stop(self) -> None:
        """``docker stop``, ``docker rm``."""
        try:
            if (seconds := self.patience(self.stop_signal)) > 0:
                commands.run([*CLI, "stop", "-t", str(int(seconds)), self.name])
        except commands.Failed:
            pass  # rm -f ends it
        self.guard.undo(self.name)


def start(image: str, options: RunOptions, guard: Guard, arm: Callable[[int], None] | None) -> Running:
    """``docker create``, then ``docker start``; ARM sees the root directory in between."""
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
    running = DockerRunning(name, guard)
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
    """Have the daemon mount the container's root before it starts, and arm the recorder on it; what ends the hold when closed.

    ``GET /containers/NAME/export`` streams the root as a tar. While nobody reads it, the daemon keeps the overlay mounted, and a
    start takes the same mount over. An image so small that the whole tar fits into the socket's buffers is unmounted again:
    then the recorder is armed at the start, by a watch for the mount, which may come a moment too late (the walk looks for that).
    """
    row = _inspect("container", name) or {}
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
    if not stream.recv(12).startswith(b"HTTP/1."):  # the headers come when the root is mounted
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
    """``docker load``; what to call the image."""
    return loaded(feed([*CLI, "load", "-q"], write, reference)) or reference or id


def loaded(said: str) -> str:
    """What an engine says that it loaded."""
    found = re.search(r"Loaded image(?:\(s\))?(?: ID)?: *(\S+)", said)
    return found[1].rstrip(",") if found else ""


def feed(argv: list[str], write: Callable[[IO[bytes], str], None], reference: str) -> str:
    """Run ARGV with the archive as its input; what it prints. Raises commands.Failed."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    try:
        write(process.stdin, reference)
        process.stdin.close()
    except BrokenPipeError:
        pass  # its own words say why
    finally:
        process.stdin = None
        printed, said = process.communicate(timeout=commands.SECONDS * 5)
    if process.returncode:
        text = said.decode("utf-8", "replace").strip()
        last = text.splitlines()[-1] if text else f"exit status {process.returncode}"
        hint = "this engine may not know zstd: --compress gzip" if "invalid tar header" in text else ""
        raise commands.Failed(f"{commands.shown(argv)}: {printable(last[:400])}", hint, process.returncode, text)
    return printed.decode("utf-8", "replace")


def save(image: str, path: str) -> None:
    """``docker save``."""
    commands.run([*CLI, "save", "-o", path, image], seconds=commands.SECONDS * 10)


def present(image: str) -> bool:
    """Whether there is such an image."""
    return _inspect("image", image) is not None


def removal(image: str) -> list[str]:
    """``docker rmi``."""
    return [*CLI, "rmi", image]


def tag(image: str, reference: str) -> None:
    """``docker tag``."""
    commands.run([*CLI, "tag", image, reference])
