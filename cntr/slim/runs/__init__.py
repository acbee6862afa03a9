"""Runs images: in the engine that has them, or by an OCI runtime on a directory. One file each.

An engine's module has the functions of ``Engine``; ``Running`` is a container that it started.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from cntr.errors import CntrError, printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any, Protocol

# uname(2)'s machine → the architecture's name in images.
MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
STOP_SECONDS = 3.0  # between the stop signal and SIGKILL


# The types of the run-time settings in a configuration (OCI image-spec, config.md); "" and null are allowed too.
KINDS: dict[str, tuple[type, ...]] = {
    "Entrypoint": (list, str),
    "Cmd": (list, str),
    "Shell": (list, str),
    "Env": (list,),
    "ExposedPorts": (dict,),
    "Volumes": (dict,),
    "Healthcheck": (dict,),
    "WorkingDir": (str,),
    "User": (str,),
    "StopSignal": (str,),
}


def checked(settings: dict[str, Any], reference: str) -> dict[str, Any]:
    """SETTINGS, if each has its type. Raises CntrError."""
    for name, kinds in KINDS.items():
        value = settings.get(name)
        if value and not isinstance(value, kinds):
            raise CntrError(
                f"{printable(reference)}: {name} in its configuration is {type(value).__name__}, not {kinds[0].__name__}",
                "the image is damaged or malicious",
            )
    return settings


class Image:
    """An image as its engine has it.

    config: the whole image configuration (OCI image-spec); layers: directories of its layers, lowest first, [] if they
    are not accessible; settings: the run-time settings, with those of a container of it (Entrypoint, Cmd, Env, User).
    """

    def __init__(self, engine: str, reference: str, id: str, config: dict[str, Any], layers: list[str]) -> None:
        self.engine, self.reference, self.id, self.config, self.layers = engine, reference, id, config, layers
        own = config.get("config")
        self.settings: dict[str, Any] = checked(dict(own) if isinstance(own, dict) else {}, reference)

    def history(self) -> list[str]:
        """The command that made each layer, lowest first, "" if unknown."""
        rows = self.config.get("history") or []
        made = [str(row.get("created_by") or "") for row in rows if not row.get("empty_layer")]
        return made if len(made) == len(self.layers) else [""] * len(self.layers)


class RunOptions:
    """The user's options for running it."""

    def __init__(self) -> None:
        """The image's own settings, and only the container's loopback as network."""
        self.network = "none"
        self.environment: list[str] = []
        self.volumes: list[str] = []
        self.command: list[str] = []  # replaces the image's Cmd
        self.entrypoint: list[str] = []
        self.timeout = 60.0  # seconds to the first answer
        self.stop_signal = "SIGTERM"


class Running:
    """A started container. Engines subclass it."""

    name = ""
    pid = 0  # of its first process, in this pid namespace
    stop_signal = "SIGTERM"

    def exited(self) -> int | None:
        """Its exit status, None while it runs."""
        raise NotImplementedError

    def log(self) -> str:
        """The end of its output, for an error."""
        raise NotImplementedError

    def exec(self, words: list[str], seconds: float) -> str:
        """Run its own program in it; return the output. Raises commands.Failed."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it, with SIGKILL if necessary, and remove it."""
        raise NotImplementedError

    def patience(self, name: str) -> float:
        """Seconds to wait after the signal NAME: 0 if the first process has no handler for it, because the kernel then
        drops the signal.
        """
        try:
            number = int(name) if name.isdecimal() else int(signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"])
            fields = procfs.status(procfs.read(f"/proc/{self.pid}/status"))
            caught = int(fields["SigCgt"], 16) >> (number - 1) & 1
        except (OSError, KeyError, ValueError):
            return STOP_SECONDS
        return STOP_SECONDS if caught else 0.0

    def demand_running(self, what: str) -> None:
        """Raise CntrError if it has ended, with the end of its output."""
        status = self.exited()
        if status is not None:
            raise CntrError(f"{what}: the container ended with status {status}{self.said()}", "see its output")

    def said(self) -> str:
        """`: ` and the last line of its output."""
        lines = [line for line in self.log().splitlines() if line.strip()]
        return f": {printable(lines[-1][:300])}" if lines else ""


if TYPE_CHECKING:

    class Engine(Protocol):
        """The functions of an engine's module."""

        NAME: str

        def image(self, reference: str) -> Image | None:
            """The image of that name or id, None if the engine has none. Raises CntrError if the engine does not
            answer.
            """

        def container(self, name: str) -> tuple[str, dict[str, Any], int] | None:
            """(image id, its settings, pid or 0) of a container, None if there is none of that name."""

        def start(self, image: str, options: RunOptions, guard: Any, arm: Callable[[int], None] | None) -> Running:
            """Start a container of the image. ARM is called with an fd of its root directory before its first
            instruction.
            """

        def load(self, write: Callable[[IO[bytes], str], None], reference: str, id: str) -> str:
            """Load the archive that WRITE writes under REFERENCE ("" for none); return the name of the image."""

        def present(self, image: str) -> bool:
            """Whether there is an image of that id or name."""

        def tag(self, image: str, reference: str) -> None:
            """Add a name to an image."""

        def save(self, image: str, path: str) -> None:
            """Write the image as an archive to PATH."""

        def removal(self, image: str) -> list[str]:
            """The command that removes an image."""


def wait_for_pid(ask: Callable[[], int], ended: Callable[[], int | None], seconds: float = 10.0) -> int:
    """The pid returned by ASK once it is not 0; 0 if the container has ENDED first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid = ask()
        if pid or ended() is not None:
            return pid
        time.sleep(0.005)
    raise CntrError("the engine started the container and names no process of it", "see the engine's log")


def open_root(path: str, owner: int = 0) -> int:
    """An fd of the directory PATH as seen by process OWNER (0: this one): an engine may have a mount namespace of its
    own.
    """
    where = f"/proc/{owner}/root{path}" if owner else path
    return os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def mounted(end: str, owner: int) -> str:
    """The mount point with that end in the mount namespace of process OWNER, "" if there is none."""
    try:
        text = procfs.read(f"/proc/{owner or 'self'}/mountinfo")
    except OSError:
        return ""
    return next((mount.mount_point for mount in procfs.mountinfo(text) if mount.mount_point.endswith(end)), "")


class MountWatch:
    """Arms a recorder when a container's root is mounted, for engines that do not stop between the mount and the start."""

    def __init__(self, end: str, owner: int, arm: Callable[[int], None]) -> None:
        """end: the end of the mount point's path, as seen by process OWNER."""
        self.end, self.owner, self.arm = end, owner, arm
        self.ended = False
        self.thread = threading.Thread(target=self._watch, name="mounts", daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self.ended:
            path = mounted(self.end, self.owner)
            if not path:
                time.sleep(0.0005)
                continue
            try:
                fd = open_root(path, self.owner)
            except OSError:
                continue
            try:
                self.arm(fd)
            finally:
                os.close(fd)
            return

    def close(self) -> None:
        """Stop watching: the container has started."""
        self.thread.join(2)
        self.ended = True


def as_words(value: object) -> list[str]:
    """A list of words from the configuration; a string is a shell command."""
    if isinstance(value, str):
        return ["/bin/sh", "-c", value]
    return [str(word) for word in value] if isinstance(value, list) else []
