"""The container's memory limit: debugging a full container must not kill its processes, and a killed session must say why."""

from __future__ import annotations

from cntr.attach import cgroup
from cntr.errors import CntrError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROOM = 24 << 20  # bytes: a shell and a debugger that has read a program's symbols
KILLED = 128 + 9  # the status of a command that SIGKILL has ended


def spared(found: list[cgroup.Membership], label: str, say: Callable[[str], None]) -> list[cgroup.Membership]:
    """FOUND without the memory controller where its limit is near: the kernel might kill the container's own processes for ours."""
    memory = cgroup.Memory(found)
    room = memory.room()
    if room is None or room[0] >= LEAST_ROOM:
        return found
    say(f"note: {label} has {room[0] >> 20} MiB left of {room[1] >> 20}: the session stays outside its memory limit")
    return [membership for membership in found if not memory.holds(membership)]


def watched(run: Callable[[], int], memory: cgroup.Memory, label: str, say: Callable[[str], None]) -> int:
    """The status of RUN; one line, and never success, where the kernel killed for the container's memory limit meanwhile."""
    before = memory.kills()
    try:
        status = run()
    except CntrError:
        if memory.kills() <= before:
            raise
        status = KILLED
    if memory.kills() > before:
        whose = "the session" if status == KILLED else "a process"
        say(f"{label} has reached its memory limit: the kernel killed {whose}")
    return status
