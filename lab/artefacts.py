"""What is kept of a failing cell: enough to understand the failure without the machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .errors import CommandFailed, LabError
from .machine import Machine

QUESTIONS = {
    "journal.txt": "journalctl -b --no-pager -n 400 2>/dev/null || dmesg | tail -n 200",
    "mountinfo.txt": "cat /proc/self/mountinfo",
    "processes.txt": "ps axww -o pid,ppid,uid,stat,wchan:20,cgroup:60,args",
    "containers.txt": "cntr ps; cntr doctor",
    "kernel.txt": "dmesg | tail -n 120",
}


def collect(machine: Machine, place: Path, failure: str, lost: bool, repro: str) -> list[str]:
    """Write the artefacts of one failed cell to `place`; return the files' names.

    Never raises: for a lost machine only its console and the failure are kept.
    """
    place.mkdir(parents=True, exist_ok=True)
    steps = "\n".join(f"{s.returncode:4d} {s.seconds:7.2f} s  [{s.user}] {s.command}" for s in machine.history)
    (place / "failure.txt").write_text(
        f"{failure}\n\nThe scenario's commands (status, seconds, user):\n{steps}\n\nTo repeat it:\n  {repro}\n"
    )
    (place / "console.txt").write_text(machine.driver.console())
    if not lost:
        for name, command in QUESTIONS.items():
            with contextlib.suppress(LabError, CommandFailed, OSError):
                machine.fetch(command, place / name)
        with contextlib.suppress(LabError, CommandFailed, OSError):
            machine.fetch(_per_container(machine), place / "targets.txt")
    return sorted(str(path.relative_to(place.parent.parent)) for path in place.iterdir())


def _per_container(machine: Machine) -> str:
    """/proc of each container's first process."""
    script = f"sh /usr/local/lib/cntr-lab/provision/{machine.spec.engine}.sh pid"
    sudo = "runuser -u vagrant -- " if machine.spec.engine.endswith("rootless") else ""
    files = " ".join(f"/proc/$p/{name}" for name in ("status", "cgroup", "mountinfo", "attr/current"))
    ask = "; ".join(
        f'echo "== {name}"; p=$({sudo}{script} {name} 2>&1) && cat {files} && ls -l /proc/$p/ns /proc/$p/fd'
        for name in machine.spec.containers
    )
    return f"{{ {ask}; }} 2>&1"
