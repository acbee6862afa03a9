"""The container's memory limit. A session in a full container must not get its processes killed, and must say why
it was killed.
"""

from __future__ import annotations

from cntr.attach import cgroup
from cntr.errors import CntrError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROOM = 24 << 20  # bytes: enough for a shell and a debugger with a program's symbols
KILLED = 128 + 9  # exit status of a command killed by SIGKILL


def spared(found: list[cgroup.Membership], label: str, say: Callable[[str], None]) -> list[cgroup.Membership]:
    """Return FOUND without the memory controller if its limit is near: the kernel might kill the container's
    processes because of ours.
    """
    memory = cgroup.Memory(found)
    room = memory.room()
    if room is None or room[0] >= LEAST_ROOM:
        return found
    say(f"note: {label} has {room[0] >> 20} MiB left of {room[1] >> 20}: the session stays outside its memory limit")
    return [membership for membership in found if not memory.holds(membership)]


def watched(run: Callable[[], int], memory: cgroup.Memory, label: str, say: Callable[[str], None]) -> int:
    """Return the status of RUN. If the kernel killed for the memory limit meanwhile, print one line, and never
    return success.
    """
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
