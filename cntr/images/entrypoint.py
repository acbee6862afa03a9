"""``cntr run``: runs the entrypoint of a container or image in a stand-in, alone or under the tools' strace, gdb, …"""

from __future__ import annotations

import os

from cntr import engines, images
from cntr.engines import Container
from cntr.errors import CntrError, TargetNotFound, printable
from cntr.images import targets
from cntr.images.lint import CommandUser, lint
from cntr.linux import procfs
from cntr.linux.host import VIEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from cntr.images.blueprint import Blueprint

    class Request(Protocol):
        """The options of a session; see attach.request."""

        target: str
        argv: list[str]
        user: str | None
        network: str
        write: bool
        entrypoint: bool
        seccomp: bool
        own_root: bool


BASE_DIR = "/var/lib/cntr"
DAC_OVERRIDE = 1 << 1  # CAP_DAC_OVERRIDE
ENV, UNSHARE = "/usr/bin/env", "/usr/bin/unshare"  # of the tools


def for_session(
    request: Request, missing: TargetNotFound | None, closers: list[Callable[[], object]], say: Callable[[str], None]
) -> Container:
    """The stand-in for a session; the last of CLOSERS ends it. Raises MISSING if nobody knows the target, or CntrError."""
    found = targets.hold(
        request.target,
        missing,
        network=request.network,
        write=request.write,
        say=say,
        running=request.entrypoint,
        confined=request.seccomp or request.entrypoint,
        exact=request.entrypoint,
    )
    if found is None:
        raise missing or TargetNotFound(
            f"{printable(request.target[:200])}: no such container or image", "`cntr ps --all` lists containers"
        )
    container, held = found
    closers.append(held.close)
    made = held.blueprint
    if request.entrypoint:
        _prepare(request, container, made, say)
    elif not images.is_reference(request.target):
        kept = "kept in its own layer" if request.write else "thrown away at the end (--write keeps them)"
        kept = "thrown away at the end" if made.disk else kept
        say(f"note: {made.label()} is {made.state}: a stand-in replaces the missing process; changes are {kept}")
    return container


def _prepare(request: Request, container: Container, made: Blueprint, say: Callable[[str], None]) -> None:
    """Put the entrypoint into the request: alone in the container's root, or after a tool of the tools' side."""
    command = made.command()
    for line in problems(container.pid, made):
        say(f"note: {line}")
    if not command:
        raise CntrError(f"{made.label()}: it has no entrypoint and no command", "`cntr exec` runs a command of yours")
    if not request.argv:
        request.own_root, request.argv, request.seccomp = True, command, True
        return
    uid, gid, groups = _ids(container.pid)
    base = os.environ.get("CNTR_BASE_DIR") or BASE_DIR
    settings = [f"{key}={value}" for key, value in made.environment.items()]
    change = [UNSHARE, f"--root={base}", f"--wd={made.directory}"]
    if uid or gid:
        request.user = "0:0"  # chroot(2) needs a capability; the entrypoint is run as its own user again
        change += [f"--setgid={gid}", f"--setuid={uid}"]
        if groups:
            say("note: under a tool the entrypoint has no supplementary groups")
    request.argv = [*request.argv, ENV, "-i", *settings, *change, "--", *command]


def problems(pid: int, made: Blueprint) -> list[str]:
    """The lint's findings for what would run in the stand-in PID."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [*made.faults, *lint(root, made.command(), made.environment, made.directory, _user(pid))]
    finally:
        os.close(root)


def _user(pid: int) -> CommandUser:
    """Who the stand-in is, in this user namespace."""
    status = procfs.status(procfs.read(f"/proc/{pid}/status"))
    groups = {int(word) for word in (status["Gid"].split()[0], *status["Groups"].split())}
    return CommandUser(int(status["Uid"].split()[0]), groups, all=bool(int(status["CapEff"], 16) & DAC_OVERRIDE))


def _ids(pid: int) -> tuple[int, int, list[int]]:
    """User, group and supplementary groups of the stand-in, in its own user namespace."""
    status = procfs.status(procfs.read(f"/proc/{pid}/status"))
    found = []
    for field, file in (("Uid", "uid_map"), ("Gid", "gid_map")):
        outside = int(status[field].split()[0])
        rows = procfs.id_map(procfs.read(f"/proc/{pid}/{file}"))
        found.append(next((a + outside - b for a, b, count in rows if b <= outside < b + count), outside))
    return found[0], found[1], [int(word) for word in status["Groups"].split()]


def describe(pid: int, made: Blueprint) -> list[tuple[str, str]]:
    """(property, value) rows about a stopped target, for ``cntr inspect``. The printer escapes control characters."""
    if made.more:
        with VIEW:
            made.more()
    rows = [("state", made.state), ("image", made.image), ("entrypoint", _shown(made.entrypoint))]
    rows += [("command", _shown(made.argv)), ("working directory", made.directory), ("user", made.user or "0")]
    if made.health:
        rows.append(("health check", _shown(made.health[1:] if made.health[0].startswith("CMD") else made.health)))
    if made.status is not None:
        killed = f" (signal {made.status - 128})" if 128 < made.status < 160 else ""
        rows.append(("last exit status", f"{made.status}{killed}"))
    if made.oom_killed is not None:
        rows.append(("killed for memory", "yes" if made.oom_killed else "no"))
    for line in problems(pid, made) or ["nothing is missing to start it"]:
        rows.append(("entrypoint check", line))
    try:
        with VIEW:
            log = made.log() if made.log else []
    except (CntrError, OSError, engines.Refused):
        log = []
    return rows + [("log", line) for line in log]


def _shown(argv: list[str]) -> str:
    """A command in shell syntax."""
    plain = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=@%+,-")
    return " ".join(
        word if word and plain.issuperset(word) else "'" + word.replace("'", "'\\''") + "'" for word in argv
    )
