"""A running container as its engine knows it, and the ways in which an engine refuses."""

from __future__ import annotations

from cntr.errors import printable


class Refused(Exception):
    """The engine is there but did not answer: why, in one line that does not name the engine; hint: what to do, if
    known; called: the name of a container that does not run.
    """

    def __init__(self, message: str, hint: str = "", called: str = "") -> None:
        super().__init__(message)
        self.hint, self.called = hint, called


class NotRunning(Refused):
    """The engine has a container of that name, but it does not run: why, in one line."""


class RemoteRefused(Refused):
    """The engine's containers are on another machine. host: in the form of ``--host``."""

    def __init__(self, message: str, hint: str, host: str) -> None:
        super().__init__(message, hint)
        self.host = host


def plain(target: str) -> str:
    """Return TARGET as we name it, if it is written as other tools show it: docker://ID by kubectl,
    /web by `docker inspect`.
    """
    prefix, url, rest = target.partition("://")
    if url and prefix.replace("-", "").isalnum():
        return f"{prefix}:{rest}"
    prefix, colon, name = target.rpartition(":")
    is_dockers = prefix in ("", "docker") and name.count("/") == 1 and name[0] == "/" and len(name) > 1
    return f"{prefix}{colon}{name[1:]}" if is_dockers else target


class Container:
    """A running container as its engine knows it.

    start_time: field 22 of /proc/PID/stat when PID was found to be the container's process, 0 if unknown; state:
    running, paused, sandboxed (its processes are not on this host) or rootfs (no process, only files); rootfs: the
    directory of those files on the host; owner: the uid of the user who names it and owns the process, 0 for root;
    note: one line for the user, "" for none; spec: the path of its OCI config.json, "" if there is none; settings:
    (environment, working directory) as the engine tells them, None if it does not (``settings``); digest: the image's
    id, ``sha256:…``, "" if unknown; filter: the seccomp program of a stand-in made by cntr, b"" for none, None if only
    the process knows.
    """

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
        """``engine:name``, safe for a terminal and for the command line."""
        return printable(f"{self.engine}:{self.name or self.id}")
