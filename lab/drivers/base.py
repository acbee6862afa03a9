"""What every driver can do, and what it is given."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .. import paths
from ..accel import Accelerator
from ..boxbuild import BuiltBox
from ..emulator import Emulator
from ..table import MachineSpec


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a driver needs to know of the machine it shall make.

    `keep`: the machine outlives this process (an interactive session may follow a failure).
    """

    spec: MachineSpec
    run_dir: Path
    built: BuiltBox | None = None
    accelerator: Accelerator | None = None
    keep: bool = False
    libvirt_uri: str = ""
    emulator: Emulator | None = None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a machine answers SSH, and with which key; `port` 0 means it is no SSH machine (the here driver)."""

    host: str
    port: int
    key: Path


class Driver(Protocol):
    """The life of one machine. `restore` leaves a running machine, `destroy` nothing at all and never complains."""

    name: str
    endpoint: Endpoint | None
    is_resumed: bool
    """Whether it began with the memory of an earlier machine instead of booting."""

    def up(self) -> Endpoint:
        """Make the machine and start it; it may not answer yet. Raises LabError."""

    def booted(self, hang_up: Callable[[], None]) -> None:
        """Told once, when the machine first answers: what it is now, later ones of its box may begin with. Raises LabError.

        Args:
            hang_up: closes the connections; to be called before the machine's state is kept.
        """

    def halt(self) -> None:
        """Stop it; `up` starts it again with its disk as it was."""

    def snapshot(self, name: str) -> None:
        """Keep disk and memory under a name."""

    def restore(self, name: str) -> None:
        """Go back to a kept state, running."""

    def destroy(self) -> None:
        """Remove the machine and all of its files."""

    def alive(self) -> bool:
        """Whether the machine's process is there."""

    def console(self) -> str:
        """What the machine's serial line said so far."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now; who loses the race for it asks again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 if there is none. Pids are reused."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def write_state(plan: Plan, driver: str, **more: object) -> None:
    """Note in the run directory what `lab clean` and `lab shell` need, before anything exists that could be left over."""
    state = {
        "machine": plan.spec.name,
        "driver": driver,
        "keep": plan.keep,
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "box": str(plan.built.directory) if plan.built else "",
        **more,
    }
    (plan.run_dir / "state.json").write_text(json.dumps(state, indent=1) + "\n")


def read_state(run_dir: Path) -> dict[str, object]:
    """The note of `write_state`; empty when there is none."""
    try:
        state: dict[str, object] = json.loads((run_dir / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state


def remove_run_dir(run_dir: Path) -> None:
    """The last step of `destroy`."""
    assert run_dir.parent == paths.runs_dir()
    shutil.rmtree(run_dir, ignore_errors=True)
