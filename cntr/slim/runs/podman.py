"""Podman, root's or the caller's own: images and containers by its command; ``init`` stands between creation and start."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import secrets
import shutil

from cntr.errors import CntrError
from cntr.slim import commands
from cntr.slim.runs import Image, Running, RunOptions, open_root, wait_for_pid
from cntr.slim.runs.docker import feed, loaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from cntr.slim.leftovers import Guard

NAME = "podman"
CAP_SYS_RESOURCE = 24


def cli() -> list[str]:
    """The command, told of what this machine lacks: systemd, a pure cgroup hierarchy."""
    words = ["podman"]
    if not os.path.isdir("/run/systemd/system"):
        words += ["--cgroup-manager=cgroupfs", "--events-backend=file"]
    if os.path.ismount("/sys/fs/cgroup/unified") and shutil.which("runc") and not os.environ.get("CONTAINERS_CONF"):
        words += ["--runtime", "runc"]  # crun refuses hybrid cgroups
    return words


def _inspect(kind: str, name: str) -> dict[str, Any] | None:
    if not name or name.startswith("-"):
        return None
    try:
        rows = commands.load([*cli(), kind, "inspect", name])
    except commands.Failed as error:
        said = error.said.lower()
        if "no such" in said or "not known" in said or "invalid reference" in said or "unable to find" in said:
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
    if driver.get("Name") != "overlay" or not all(map(os.path.isdir, layers)):
        layers = []  # another storage driver: the image is saved
    tags = row.get("RepoTags") or row.get("NamesHistory") or []
    name = reference if reference in tags or not tags else str(tags[0])
    return Image(NAME, name, str(row["Id"]).removeprefix("sha256:"), _config(row), layers)


def _config(row: dict[str, Any]) -> dict[str, Any]:
    """The very configuration, proved by its digest (containers/storage keeps it as the image's big data); else inspect's."""
    id = str(row["Id"]).removeprefix("sha256:")
    root = str(((row.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")).partition("/overlay/")[0]
    name = base64.b64encode(f"sha256:{id}".encode()).decode()
    try:
        with open(f"{root}/overlay-images/{id}/={name}", "rb") as stream:
            data = stream.read(64 << 20)
        if hashlib.sha256(data).hexdigest() == id:
            found = json.loads(data)
            if isinstance(found, dict):
                return found
    except (OSError, ValueError):
        pass
    keys = {"Architecture": "architecture", "Os": "os", "Created": "created", "Author": "author", "Config": "config"}
    found = {name: row[key] for key, name in keys.items() if row.get(key)}
    return found | ({"history": row["History"]} if row.get("History") else {})


def container(name: str) -> tuple[str, dict[str, Any], int] | None:
    """(image id, settings, pid) of a container."""
    row = _inspect("container", name)
    if row is None:
        return None
    settings = dict(row.get("Config") or {})
    if isinstance(settings.get("Entrypoint"), str):
        settings["Entrypoint"] = settings["Entrypoint"].split()
    return str(row["Image"]), settings, int(row["State"]["Pid"])


class PodmanRunning(Running):
    """A container of Podman's."""

    def __init__(self, name: str, guard: Guard) -> None:
        """name: of the container."""
        self.name, self.guard = name, guard

    def state(self) -> dict[str, Any]:
        """What inspect says of its state."""
        row = _inspect("container", self.name)
        if row is None:
            raise CntrError(f"podman: the container {self.name} has been removed by somebody", "start again")
        return dict(row["State"])

    def exited(self) -> int | None:
        """Its exit status."""
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            return None
        state = self.state()
        if state["Status"] in ("running", "created", "configured", "initialized", "stopping"):
            return None
        return int(state["ExitCode"])

    def log(self) -> str:
        """The last lines."""
        return commands.run([*cli(), "logs", "--tail", "20", self.name], both=True)

    def exec(self, words: list[str], seconds: float) -> str:
        """``podman exec``."""
        return commands.run([*cli(), "exec", self.name, *words], seconds=seconds, both=True)

    def stop(self) -> None:
        """``podman stop``, ``podman rm``."""
        try:
            if (seconds := self.patience(self.stop_signal)) > 0:
                commands.run([*cli(), "stop", "-t", str(int(seconds)), self.name])
        except commands.Failed:
            pass  # rm -f ends it
        self.guard.undo(self.name)


def _limits() -> list[str]:
    """Podman raises limits by default, which takes CAP_SYS_RESOURCE; without it, the ones that are."""
    with open("/proc/self/status", encoding="ascii") as stream:
        line = next(line for line in stream if line.startswith("CapEff"))
    if int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1 and os.geteuid() == 0:
        return []
    # Podman 4.3 itself comes down to the lower of the two for both (its early_init_linux.go).
    hard = min(resource.getrlimit(number)[1] for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    return ["--ulimit", f"nofile={hard}:{hard}", "--ulimit", f"nproc={hard}:{hard}"] if hard > 0 else []


def start(image: str, options: RunOptions, guard: Guard, arm: Callable[[int], None] | None) -> Running:
    """``podman create``, ``init``, then ``start``: after init the root is mounted and nothing of the image has run."""
    name = f"cntr-slim-{os.getpid()}-{secrets.token_hex(3)}"
    flags = ["--network", options.network, *_limits()]
    flags += [word for value in options.environment for word in ("-e", value)]
    flags += [word for value in options.volumes for word in ("-v", value)]
    if options.entrypoint:
        flags += ["--entrypoint", json.dumps(options.entrypoint)]
    guard.add(name, [*cli(), "rm", "-f", "-v", "-t", "0", name])
    commands.run(
        [*cli(), "create", "--pull", "never", "--name", name, "--label", "cntr.slim=1", *flags, image, *options.command]
    )
    running = PodmanRunning(name, guard)
    running.stop_signal = options.stop_signal
    if arm:
        commands.run([*cli(), "init", name])
        pid = wait_for_pid(lambda: int(running.state()["Pid"]), running.exited)
        fd = open_root("/", pid)
        try:
            arm(fd)
        finally:
            os.close(fd)
    commands.run([*cli(), "start", name])
    running.pid = wait_for_pid(lambda: int(running.state()["Pid"]), running.exited)
    return running


def load(write: Callable[[IO[bytes], str], None], reference: str, id: str) -> str:
    """``podman load``; what to call the image."""
    return loaded(feed([*cli(), "load", "-q"], write, reference)) or reference or id


def save(image: str, path: str) -> None:
    """``podman save``."""
    commands.run([*cli(), "save", "--format", "docker-archive", "-o", path, image], seconds=commands.SECONDS * 10)


def present(image: str) -> bool:
    """Whether there is such an image."""
    return _inspect("image", image) is not None


def removal(image: str) -> list[str]:
    """``podman rmi``."""
    return [*cli(), "rmi", image]


def tag(image: str, reference: str) -> None:
    """``podman tag``."""
    commands.run([*cli(), "tag", image, reference])
