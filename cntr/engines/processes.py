"""All processes of this pid namespace, and what a number that none of them has may mean."""

from __future__ import annotations

import os

from cntr.linux import procfs


def elsewhere(number: int) -> str:
    """The hint for a pid that does not exist here: it may be one inside a container."""
    usual = "`cntr ps` lists containers with their pids"
    found = []
    for pid in processes():
        try:
            ids = procfs.status(procfs.read(f"/proc/{pid}/status")).get("NSpid", "").split()
        except OSError:
            continue
        if str(number) in ids[1:]:
            found.append(pid)
    if not found:
        return usual
    return (
        f"inside a container's pid namespace that is the number of pid {', '.join(map(str, found[:4]))} here; {usual}"
    )


def processes() -> list[int]:
    """The pids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
