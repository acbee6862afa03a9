"""`python -m lab clean`: removes what interrupted or kept runs left, but nothing of active runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from . import libvirtd, paths, session
from .boxbuild import BuiltBox
from .drivers import Plan
from .drivers.base import read_state, remove_run_dir, start_time
from .errors import LabError
from .table import load


def clean(*, boxes: bool = False, kept: bool = True) -> Iterator[str]:
    """Destroy left-over machines, including those kept on purpose if KEPT is true; yield a line for each."""
    going_on = 0
    for run_dir in sorted(paths.runs_dir().glob("*")):
        state = read_state(run_dir)
        if state.get("keep") and not kept:
            going_on += 1
            continue
        if not state.get("keep") and _runs(state):
            going_on += 1
            yield f"{run_dir.name} belongs to a run in progress (pid {state.get('pid')}): left alone"
            continue
        yield f"removing {run_dir.name}"
        _destroy(run_dir, state)
    if not going_on:
        if libvirtd.stop_if_idle():
            yield "stopped the lab's libvirtd"
        elif libvirtd.running():
            yield f"the lab's libvirtd still has {', '.join(libvirtd.domains())} (made by hand? vagrant destroy): not stopped"
        if boxes:
            for name in ("boxes", "qemu", "libvirt", "vagrant.d"):
                shutil.rmtree(paths.cache_dir() / name, ignore_errors=True)
            yield "removed the cached boxes"


def _destroy(run_dir: Path, state: dict[str, object]) -> None:
    try:
        spec = load().machine(str(state.get("machine", "")))
        built = BuiltBox(load().boxes[spec.box], Path(str(state.get("box", ""))))
        from .accel import Accelerator

        plan = Plan(spec, run_dir, built, Accelerator("tcg", ""), True, str(state.get("uri", "")))
        session.make_driver(plan, str(state.get("driver", "qemu"))).destroy()
    except LabError:
        remove_run_dir(run_dir)  # the state file is unreadable, or the table no longer has the machine
    if run_dir.exists():
        remove_run_dir(run_dir)


def _runs(state: dict[str, object]) -> bool:
    """Whether the lab that wrote this state file is still running, and its pid was not reused."""
    started = start_time(int(str(state.get("pid", 0))))
    return started != 0 and started == state.get("started")
