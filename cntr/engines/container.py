"""A running container as its engine knows it, and the two ways in which an engine says no."""

from __future__ import annotations

from cntr.errors import printable


class Refused(Exception):
    """The engine is there but did not answer: why, in the engine-free words of one line; hint: what to do, where that is known."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NotRunning(Refused):
    """The engine has a container of that name, but no process of it runs: one line that says so."""


class RemoteRefused(Refused):
    """The engine's containers are on another machine; host: as ``--host`` takes it."""

    def __init__(self, message: str, hint: str, host: str) -> None:
        super().__init__(message, hint)
        self.host = host


class Container:
    """A running container as its engine knows it.

    start_time: field 22 of /proc/PID/stat when PID was seen to be this container's process, 0 where unknown;
    state: running, paused, sandboxed (its processes are not this host's) or rootfs (no process, only files);
    rootfs: the directory of those files, as the host sees it; owner: the uid of the user whose word and whose process it is, 0 for
    root's; note: one line for whoever attaches to it, "" for none; spec: the path of its OCI config.json, "" where there is none;
    settings: (environment, working directory) as the engine itself tells them, None where it does not (``settings``);
    digest: the image's id, ``sha256:…``, "" where the engine's record has none; filter: the seccomp program of a stand-in of our own
    making, b"" for none, None where nobody knows but the process.
    """

    __slots__ = (
        "digest",
        "engine",
        "filter",
        "id",
        "image",
        "name",
        "note",
        "owner",
        "pid",
        "rootfs",
        "settings",
        "spec",
        "start_time",
        "state",
    )

    def __init__(
        self,
        engine: str,
        name: str,
        pid: int,
        *,
        id: str = "",
        image: str = "",
        state: str = "running",
        owner: int = 0,
        start_time: int = 0,
        rootfs: str = "",
    ) -> None:
        self.engine, self.name, self.pid, self.id, self.image = engine, name, pid, id, image
        self.state, self.owner, self.start_time, self.rootfs = state, owner, start_time, rootfs
        self.note = self.spec = self.digest = ""
        self.settings: tuple[dict[str, str], str] | None = None
        self.filter: bytes | None = None

    def label(self) -> str:
        """``engine:name``, fit for a terminal and for the command line."""
        return printable(f"{self.engine}:{self.name or self.id}")
