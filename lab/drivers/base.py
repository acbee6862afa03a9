"""The interface of every driver, and its input."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
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
    """What a driver needs to know about the machine to make.

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
    """Where a machine answers SSH, and the key; `port` 0: it has no SSH (the here driver)."""

    host: str
    port: int
    key: Path


class Driver(Protocol):
    """The life of one machine. `restore` leaves it running; `destroy` removes everything and never raises."""

    name: str
    endpoint: Endpoint | None
    is_resumed: bool
    """Whether it started from an earlier machine's memory instead of booting."""

    def up(self) -> Endpoint:
        """Create and start the machine, which may not answer yet. Raises LabError."""

    def booted(self, hang_up: Callable[[], None]) -> None:
        """Called once, when the machine first answers: its current state may be kept as the start of later machines.
        Raises LabError.

        hang_up: closes the connections; call it before the state is kept.
        """

    def snapshot(self, name: str) -> None:
        """Save disk and memory under a name."""

    def restore(self, name: str) -> None:
        """Restore a saved state and continue running."""

    def destroy(self) -> None:
        """Remove the machine and all its files."""

    def leave(self) -> None:
        """Leave the machine running: it outlives this process."""

    def alive(self) -> bool:
        """Whether the machine's process exists."""

    def console(self) -> str:
        """The output on the machine's serial line so far."""


def free_port() -> int:
    """A free TCP port on 127.0.0.1. Another process may take it first; then ask again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def outlives(process: subprocess.Popen[bytes] | None) -> None:
    """Nobody waits for this process any more; Python would report that as a leak."""
    if process is not None:
        process.returncode = 0


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 if there is none. Pids are reused."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def write_state(plan: Plan, driver: str, **more: object) -> None:
    """Write to the run directory what `lab clean` and `lab shell` need, before anything is created."""
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
    """Read the file of `write_state`; empty if there is none."""
    try:
        state: dict[str, object] = json.loads((run_dir / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state


def remove_run_dir(run_dir: Path) -> None:
    """The last step of `destroy`."""
    assert run_dir.parent == paths.runs_dir()
    shutil.rmtree(run_dir, ignore_errors=True)
