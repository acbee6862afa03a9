"""From a target's name to its process. Numbers are resolved here; for names the engines are asked (names.py)."""

from __future__ import annotations

import os

from cntr.engines import pids
from cntr.engines.container import plain
from cntr.engines.registry import REGISTRY
from cntr.errors import CntrError, TargetNotFound, printable
from cntr.linux.host import VIEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.container import Container


def resolve(target: str) -> Container:
    """Find the one running container for TARGET (see the CLI contract). Raises TargetNotFound, AmbiguousTarget,
    CntrError.
    """
    with VIEW:
        found = _resolve(target)
    if found.rootfs and VIEW.is_toolbox():
        found.rootfs = f"/proc/1/root{found.rootfs}"
    return found


def _resolve(target: str) -> Container:
    target = plain(target)
    prefix, colon, rest = target.partition(":")
    if not target or (colon and not rest) or "\0" in target or len(target) > 4096:
        shown = printable(target[:60])
        raise TargetNotFound(f"not a container name: {shown!r}", "name a container, a pid, or engine:name")
    if pids.is_pid(target) and (found := _in_container(target)):
        return found
    if prefix == "pid" and colon:
        return pids.resolve(rest)
    if prefix == "unit" and colon:
        from cntr.engines import units

        return units.resolve(rest)
    if prefix == "command" and colon:
        from cntr.engines import command_line

        return command_line.resolve(rest)
    from cntr.engines import names

    return names.find(target)


def _in_container(pid: str) -> Container | None:
    """The process, if it is in a container and no engine can have a container of that name; None otherwise."""
    try:
        found = pids.resolve(pid)
    except TargetNotFound:
        return None
    return None if pids.is_nobodys(found.pid) or any(entry.may_have(pid) for entry in REGISTRY) else found


SANDBOX_HINTS = {
    "gvisor": "gVisor runs it in a kernel of its own: use `runsc exec`, or run cntr inside",
    "kata": "it is a virtual machine: run cntr inside the guest (`kata-runtime exec`)",
    "firecracker": "it is a virtual machine: run cntr inside the guest, by ssh or its serial console",
}


def verify(container: Container, *, runs_its_own: bool = False) -> None:
    """Refuse a container without processes on this host, and say what to do instead.

    runs_its_own: its own programs are to run (``exec``), so a bare root directory is refused too.
    """
    if container.state == "sandboxed":
        hint = SANDBOX_HINTS.get(container.engine, "run cntr inside the guest")
        if container.rootfs:
            hint += f"; its files are at {container.rootfs}"
        raise CntrError(
            f"{container.label()}: its processes run inside a sandbox (a VM or a user-space kernel), not on this host",
            hint,
        )
    if container.state == "rootfs" and runs_its_own:
        raise CntrError(
            f"{container.label()}: no process runs in it, there is only its root directory {container.rootfs}",
            "`cntr attach` shows it the host's tools; its own programs would run as the host's root, unconfined",
        )
    if container.start_time:
        now = pids.start_time(container.pid)
        if not now:
            raise TargetNotFound(f"{container.label()}: its process {container.pid} is gone", "is it still running?")
        if now != container.start_time:
            raise TargetNotFound(
                f"{container.label()}: pid {container.pid} belongs to another process now", "the container has stopped"
            )


def notes(container: Container) -> list[str]:
    """Notes for whoever enters CONTAINER: it is a process of the host itself, or it belongs to a user."""
    found = [container.note] if container.note else []
    if os.geteuid() == 0 and container.owner:
        from cntr.engines import store

        found.append(f"{container.label()} is a container of {store.owner_name(container.owner)}, not of root")
    return found
