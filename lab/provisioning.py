"""Make a started machine ready: cntr installed in it, its engine running, its containers standing."""

from __future__ import annotations

import concurrent.futures
import hashlib
import subprocess
import sys
import time
from pathlib import Path

from . import paths
from .errors import CommandFailed, LabError
from .machine import Machine

GUEST_LIB = "/usr/local/lib/cntr-lab"
ROOTLESS = ("podman-rootless",)
"""Engines whose provision script is run by the user vagrant."""


def build_wheel() -> Path:
    """cntr's wheel, built from this checkout once per state of its sources.

    Raises:
        LabError: pip could not build it.
    """
    digest = hashlib.sha256((paths.REPOSITORY / "pyproject.toml").read_bytes())
    for source in sorted((paths.REPOSITORY / "cntr").rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            digest.update(str(source.relative_to(paths.REPOSITORY)).encode() + source.read_bytes())
    place = paths.cache_dir() / "wheels" / digest.hexdigest()[:12]
    found = list(place.glob("cntr_attach-*.whl"))
    if found:
        return found[0]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--wheel-dir",
        str(place),
        str(paths.REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(place.glob("cntr_attach-*.whl"))
    if done.returncode != 0 or not found:
        raise LabError(
            f"building cntr's wheel failed: {done.stderr.strip()[-600:]}", "does `pip wheel .` work in the checkout?"
        )
    return found[0]


def install_cntr(machine: Machine, wheel: Path) -> float:
    """Install the wheel into the machine's /opt/cntr; the seconds it took.

    Raises:
        CommandFailed: it does not install, or `cntr --help` does not run.
    """
    started = time.monotonic()
    machine.copy(wheel, f"{GUEST_LIB}/{wheel.name}")
    pip = "/opt/cntr/bin/python -m pip install -q --no-index --no-deps --no-compile --force-reinstall --disable-pip-version-check"
    machine.succeed(f"{pip} {GUEST_LIB}/{wheel.name}", timeout=60)
    # Byte code now, not at the first attach, which a scenario may be timing.
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
    """Everything between an answering machine and the first scenario. Seconds spent, per step; the steps overlap.

    Raises:
        LabError: the engine or a container does not start; the message holds the script's last words.
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
