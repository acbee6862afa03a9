"""A session's resource limits (getrlimit(2)): the target's, raised where nothing could run; no core files."""

from __future__ import annotations

from cntr.linux.process import RLIMITS

MIB = 1 << 20
NO_LIMIT = -1
# Below these a program cannot start or do its work. An application may have set them for itself, or a container to
# block sessions.
FLOORS = {
    "AS": 256 * MIB,
    "DATA": 256 * MIB,
    "STACK": MIB,
    "FSIZE": 16 * MIB,
    "CPU": 60,
    "NPROC": 64,
    "NOFILE": 64,
}


def of_session(theirs: list[tuple[int, int]], *, core_files: bool) -> tuple[list[tuple[int, int]], list[str]]:
    """Return [(soft, hard)] by resource number, and the names of the limits that were raised.

    core_files: whether the container may have core files of the session's processes, which contain what they read.
    True only for the container's own programs.
    """
    found, raised = [], []
    for limit, (soft, hard) in enumerate(theirs):
        name = RLIMITS[limit] if limit < len(RLIMITS) else str(limit)
        floor = FLOORS.get(name, 0)
        if soft != NO_LIMIT and soft < floor:
            raised.append(f"RLIMIT_{name} {soft}")
            soft = floor
        if hard != NO_LIMIT and (hard < soft or soft == NO_LIMIT):
            hard = soft
        if name == "CORE" and not core_files:
            # The hard limit too: the container's root could raise the soft one by prlimit(2).
            soft = hard = 0
        found.append((soft, hard))
    return found, raised
