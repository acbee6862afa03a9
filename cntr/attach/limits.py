"""A session's resource limits (getrlimit(2)): the target's, raised where nothing could run; no core files."""

from __future__ import annotations

import resource

MIB = 1 << 20
NO_LIMIT = -1
# Below these a program cannot start or do its work. An application may have set them for itself, or a container to
# block sessions.
FLOORS = {
    resource.RLIMIT_AS: 256 * MIB,
    resource.RLIMIT_DATA: 256 * MIB,
    resource.RLIMIT_STACK: MIB,
    resource.RLIMIT_FSIZE: 16 * MIB,
    resource.RLIMIT_CPU: 60,
    resource.RLIMIT_NPROC: 64,
    resource.RLIMIT_NOFILE: 64,
}
NAMES = {
    getattr(resource, name): name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


def of_session(theirs: list[tuple[int, int]], *, core_files: bool) -> tuple[list[tuple[int, int]], list[str]]:
    """Return [(soft, hard)] by resource number, and the names of the limits that were raised.

    core_files: whether the container may have core files of the session's processes, which contain what they read.
    True only for the container's own programs.
    """
    found, raised = [], []
    for limit, (soft, hard) in enumerate(theirs):
        floor = FLOORS.get(limit, 0)
        if soft != NO_LIMIT and soft < floor:
            raised.append(f"{NAMES.get(limit, str(limit))} {soft}")
            soft = floor
        if hard != NO_LIMIT and (hard < soft or soft == NO_LIMIT):
            hard = soft
        if limit == resource.RLIMIT_CORE and not core_files:
            # The hard limit too: the container's root could raise the soft one by prlimit(2).
            soft = hard = 0
        found.append((soft, hard))
    return found, raised
