"""Podman, root's or the caller's own: images and containers through its client; ``init`` comes between creation and
start.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import secrets
import shutil

from cntr.slim import commands
from cntr.slim.runs import Image, Running, RunOptions, command, open_root, wait_for_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from cntr.slim.leftovers import Guard

NAME = "podman"
CAP_SYS_RESOURCE = 24


def cli() -> list[str]:
    """The client, with options for what this machine lacks: systemd, a pure cgroup hierarchy."""
    words = ["podman"]
    if not os.path.isdir("/run/systemd/system"):
        words += ["--cgroup-manager=cgroupfs", "--events-backend=file"]
    if os.path.ismount("/sys/fs/cgroup/unified") and shutil.which("runc") and not os.environ.get("CONTAINERS_CONF"):
        words += ["--runtime", "runc"]  # crun refuses hybrid cgroups
    return words


def image(reference: str) -> Image | None:
    """The image of that name or id."""
    row = command.inspect(cli(), "image", reference)
    if row is None:
        return None
    layers = command.layers(row)
    if (row.get("GraphDriver") or {}).get("Name") != "overlay" or not all(map(os.path.isdir, layers)):
        layers = []  # another storage driver: the image is saved
    tags = row.get("RepoTags") or row.get("NamesHistory") or []
    name = reference if reference in tags or not tags else str(tags[0])
    return Image(NAME, name, str(row["Id"]).removeprefix("sha256:"), _config(row), layers)


def _config(row: dict[str, Any]) -> dict[str, Any]:
    """containers/storage keeps the configuration as the image's big data; inspect tells the history too."""
    id = str(row["Id"]).removeprefix("sha256:")
    key = base64.b64encode(f"sha256:{id}".encode()).decode()
    found = command.config(row, f"{command.store(row, '/overlay/')}/overlay-images/{id}/={key}")
    return {"history": row["History"], **found} if row.get("History") else found


def container(name: str) -> tuple[str, dict[str, Any], int] | None:
    """(image id, settings, pid) of a container."""
    row = command.inspect(cli(), "container", name)
    if row is None:
        return None
    settings = dict(row.get("Config") or {})
    if isinstance(settings.get("Entrypoint"), str):
        settings["Entrypoint"] = settings["Entrypoint"].split()
    return str(row["Image"]), settings, int(row["State"]["Pid"])


def _limits() -> list[str]:
    """Podman raises limits by default, which needs CAP_SYS_RESOURCE; without it, keep the current ones."""
    with open("/proc/self/status", encoding="ascii") as stream:
        line = next(line for line in stream if line.startswith("CapEff"))
    if int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1 and os.geteuid() == 0:
        return []
    # Podman 4.3 uses the lower of the two for both (its early_init_linux.go).
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
    running = command.CommandRunning(cli(), name, guard)
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
    """``podman load``; return the image's name."""
    return command.loaded(command.feed([*cli(), "load", "-q"], write, reference)) or reference or id


def save(image: str, path: str) -> None:
    """``podman save``."""
    commands.run([*cli(), "save", "--format", "docker-archive", "-o", path, image], seconds=commands.SECONDS * 10)


def present(image: str) -> bool:
    """Whether there is such an image."""
    return command.inspect(cli(), "image", image) is not None


def removal(image: str) -> list[str]:
    """``podman rmi``."""
    return [*cli(), "rmi", image]


def tag(image: str, reference: str) -> None:
    """``podman tag``."""
    commands.run([*cli(), "tag", image, reference])
