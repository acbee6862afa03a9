"""``command:PATTERN``: a process by its command line."""

from __future__ import annotations

import os

from cntr.engines import evidence, pids, processes
from cntr.errors import AmbiguousTarget, TargetNotFound, printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.container import Container


def resolve(pattern: str) -> Container:
    """The one process whose command line contains PATTERN, not counting cntr and its ancestors.

    A command line is what the process says of itself: root's and the caller's processes take
    precedence over other users'. Raises TargetNotFound, AmbiguousTarget.
    """
    own = {os.getpid(), os.getppid()}
    found = []
    for pid, arguments in sorted(evidence.arguments_of(processes.processes()).items()):
        command = " ".join(arguments).strip()
        if pattern and pattern in command and pid not in own and f"command:{pattern}" not in command:
            found.append((pid, command[:40], _speaker(pid)))
    found = [row for row in found if row[2] in (0, os.geteuid())] or found
    if not found:
        raise TargetNotFound(
            f"command:{printable(pattern[:60])}: no process has that in its command line", "see `ps axww`"
        )
    if len(found) > 1:
        listed = ", ".join(f"{pid} ({printable(command)})" for pid, command, _ in found[:6])
        raise AmbiguousTarget(
            f"command:{printable(pattern[:60])}: {len(found)} processes match: {listed}", "attach by pid"
        )
    return evidence.started("command", pattern, found[0][0], found[0][2])


def _speaker(pid: int) -> int:
    """Which user controls PID's command line: the owner of its user namespace, or the user who runs
    it outside of containers; 0 for root's processes, and for what root has put into other
    namespaces or another root directory.
    """
    owner = pids.owner_of(pid)
    if owner or not (pids.is_nobodys(pid) or pids.is_nobodys(pid, "1")):
        return owner
    try:
        return int(procfs.status(procfs.read(f"/proc/{pid}/status"))["Uid"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0
