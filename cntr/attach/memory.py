"""The container's limits of memory and processes. A session in a full container must not get its processes killed,
must be able to start, and must say why it was killed.
"""

from __future__ import annotations

from cntr.attach import cgroup
from cntr.errors import CntrError
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROOM = 24 << 20  # bytes: enough for a shell and a debugger with a program's symbols
LEAST_PROCESSES = 16  # cntr's own two, a shell, and a pipeline of tools
KILLED = 128 + 9  # exit status of a command killed by SIGKILL


def spared(found: list[cgroup.Membership], label: str, say: Callable[[str], None]) -> list[cgroup.Membership]:
    """Return FOUND without the controllers of memory and processes if their limits are near: the kernel might kill
    the container's processes because of ours, or nobody could fork.
    """
    memory = cgroup.Memory(found)
    room = memory.room()
    if room and room[0] < LEAST_ROOM:
        say(
            f"note: {label} has {room[0] >> 20} MiB left of {room[1] >> 20}: the session stays outside its memory limit"
        )
        found = [membership for membership in found if not memory.holds(membership)]
    for membership in found:
        left = processes_left(membership)
        if left and left[0] < LEAST_PROCESSES:
            say(f"note: {label} has {left[0]} processes left of {left[1]}: the session stays outside that limit")
            return [other for other in found if other is not membership]
    return found


def processes_left(membership: cgroup.Membership) -> tuple[int, int] | None:
    """Return how many processes the tightest pids.max allows yet, and that limit. None if nothing limits them there."""
    directory, found = membership.directory, []
    counts = not membership.controllers or "pids" in membership.controllers.split(",")
    while counts and directory.count("/") > 2:
        try:
            limit, used = (procfs.read(f"{directory}/pids.{name}").strip() for name in ("max", "current"))
        except OSError:  # the root cgroup has neither file
            break
        if limit != "max":
            found.append((max(0, int(limit) - int(used)), int(limit)))
        directory = directory.rpartition("/")[0]
    return min(found, default=None)


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
