"""Prepares a started machine: installs cntr, starts its engine and containers."""

from __future__ import annotations

import concurrent.futures
import time
from pathlib import Path

from . import paths
from .errors import CommandFailed, LabError
from .machine import Machine
from .wheel import build_wheel

GUEST_LIB = "/usr/local/lib/cntr-lab"
ROOTLESS = ("podman-rootless",)
"""Engines whose provision script runs as the user vagrant."""


def install_cntr(machine: Machine, wheel: Path) -> float:
    """Install the wheel in the machine's /opt/cntr; return the seconds. Raises CommandFailed."""
    started = time.monotonic()
    machine.copy(wheel, f"{GUEST_LIB}/{wheel.name}")
    pip = "/opt/cntr/bin/python -m pip install -q --no-index --no-deps --no-compile --force-reinstall --disable-pip-version-check"
    machine.succeed(f"{pip} {GUEST_LIB}/{wheel.name}", timeout=60)
    # Compile now, not at the first attach, which a scenario may be timing.
    machine.succeed(
        "/opt/cntr/bin/python -m compileall -q /opt/cntr/lib/python3*/site-packages/cntr; cntr --help >/dev/null"
    )
    return time.monotonic() - started


def engine_user(engine: str) -> str:
    """Who runs the engine's commands."""
    return "vagrant" if engine in ROOTLESS else "root"


def engine_script(machine: Machine, verb: str, *names: str, timeout: float = 60) -> str:
    """Run a verb of the engine's provision script (the verbs: provision/lib.sh)."""
    engine = machine.spec.engine
    script = f"sh {GUEST_LIB}/provision/{engine}.sh {' '.join((verb, *names))}"
    return machine.succeed(script, user=engine_user(engine), timeout=timeout)


def provision(machine: Machine) -> dict[str, float]:
    """Do everything between a machine's first answer and the first scenario. Return seconds per step; the steps
    overlap.

    Raises LabError if the engine or a container does not start, with the script's last lines.
    """
    wheel = build_wheel()
    machine.copy(paths.LAB / "provision", f"{GUEST_LIB}/provision")
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        try:
            installing = beside.submit(install_cntr, machine, wheel)
            engine_script(machine, "up", *machine.spec.containers, timeout=150)
            engine = time.monotonic() - started
            return {"cntr": installing.result(), "engine": engine}
        except CommandFailed as error:
            raise LabError(f"machine {machine.spec.name} could not be made ready:\n{error}") from error
