"""Makes a machine ready and destroys it afterwards, for scenarios, `try` and `shell`."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from . import boxbuild, emulator, libvirtd, paths, provisioning
from .accel import choose
from .drivers import Driver, Endpoint, Plan
from .drivers.base import read_state
from .errors import LabError
from .machine import Machine, wait_for_ssh
from .table import MachineSpec, load

DRIVERS = ("vagrant", "qemu", "here")
FRESH = "fresh"
NEEDS_A_VM = ("fat", "boot")
"""Containers that need a privileged engine or their own init: not started on the host itself."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options for machines."""

    driver: str = "auto"
    accel: str = "auto"
    mirror: str | None = None
    libvirt_uri: str = ""
    keep_on_fail: bool = False
    cpus: int = 0
    """Per machine; 0: as in the table."""

    def chosen_driver(self) -> str:
        """The driver: as requested, else vagrant if it is installed with its libvirt plugin, else QEMU."""
        if self.driver != "auto":
            return self.driver
        from .drivers.vagrant import missing

        return "qemu" if missing() else "vagrant"


@dataclasses.dataclass
class Ready:
    """A machine with its engine and containers, and data about its preparation."""

    machine: Machine
    plan: Plan
    times: dict[str, float]
    has_snapshot: bool = False
    pids: dict[str, int] = dataclasses.field(default_factory=dict)
    """The pids of the containers' first processes, as far as the engine was asked since their last start."""

    def refresh(self) -> None:
        """After a failed scenario: restore the state that every scenario expects, so that one failure does not cause
        others.

        Without snapshots, the containers are restarted instead. Raises LostMachine if the machine did not come back.
        """
        self.pids.clear()
        if self.has_snapshot:
            self.times["restore"] = self.machine.restore(FRESH)
            return
        for name in self.machine.spec.containers:
            provisioning.engine_script(self.machine, "reset", name, timeout=90)

    def facts(self) -> dict[str, str]:
        """For the report: driver, accelerator, kernel, versions."""
        accelerator = self.plan.accelerator
        facts = {
            "driver": self.machine.driver.name,
            "accelerator": f"{accelerator.name} ({accelerator.why})" if accelerator else "none: this host",
            **({"emulator": self.plan.emulator.about} if self.plan.emulator else {}),
            "box": self.plan.built.directory.name if self.plan.built else "none: this host",
        }
        command = (
            "uname -r; . /etc/os-release; echo $PRETTY_NAME; cntr --version 2>&1 | head -n 1; "
            f"dpkg-query -W -f '${{Package}} ${{Version}}, ' {' '.join(ENGINE_PACKAGES.get(self.machine.spec.engine, ()))} 2>/dev/null"
        )
        lines = self.machine.run(command).stdout.splitlines()
        facts |= dict(zip(("kernel", "system", "cntr", "engine"), lines, strict=False))
        return facts | {f"{step} (s)": f"{seconds:.1f}" for step, seconds in self.times.items()}


ENGINE_PACKAGES = {
    "docker": ("docker.io", "containerd", "runc"),
    "podman": ("podman", "crun"),
    "podman-rootless": ("podman", "crun"),
    "nspawn": ("systemd-container",),
    "containerd": ("containerd", "runc"),
    "cri": ("containerd", "runc"),
    "lxc": ("lxc",),
    "incus": ("incus",),
    "runc": ("runc",),
    "crun": ("crun",),
}


@contextlib.contextmanager
def running(
    name: str,
    options: Options,
    failed: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Ready]:
    """A ready machine for the duration of the block; it is destroyed however the block ends. Raises LabError.

    failed: called at the end; with `--keep-on-fail` a machine with failures is kept. say: called with what is being
    waited for.
    """
    spec = load().machine(name)
    plan = _plan(spec, options)
    driver = make_driver(plan, options.chosen_driver())
    keep = False
    with terminated_like_interrupted():
        try:
            yield _start(plan, driver, say)
            keep = options.keep_on_fail and failed()
        except BaseException:
            keep = options.keep_on_fail and not isinstance(sys.exc_info()[1], KeyboardInterrupt)
            raise
        finally:
            if keep and driver.alive():
                driver.leave()
                print(
                    f"\nlab: machine {name} is kept: `python -m lab shell {name}` opens a shell, `python -m lab clean` removes it",
                    flush=True,
                )
            else:
                driver.destroy()


def _plan(spec: MachineSpec, options: Options) -> Plan:
    run_dir = paths.new_run_dir(spec.name)
    try:
        if options.chosen_driver() == "here":
            standing = tuple(name for name in spec.containers if name not in NEEDS_A_VM)
            spec = dataclasses.replace(spec, containers=standing)
            return Plan(spec, run_dir, keep=options.keep_on_fail)
        spec = dataclasses.replace(spec, cpus=options.cpus or spec.cpus)
        built = boxbuild.ensure(load().boxes[spec.box], options.mirror)
        accelerator = choose(built, options.accel)
        uri = libvirtd.uri(options.libvirt_uri) if options.chosen_driver() == "vagrant" else ""
        emulates = options.chosen_driver() == "qemu" and accelerator.name == "tcg"
        newest = emulator.ensure(options.mirror) if emulates else None
    except BaseException:
        with contextlib.suppress(OSError):
            run_dir.rmdir()
        raise
    return Plan(spec, run_dir, built, accelerator, options.keep_on_fail, uri, newest)


def make_driver(plan: Plan, name: str) -> Driver:
    """The driver NAME for this plan."""
    if name == "qemu":
        from .drivers.qemu import QemuDriver

        return QemuDriver(plan)
    if name == "vagrant":
        from .drivers.vagrant import VagrantDriver

        return VagrantDriver(plan)
    if name == "here":
        from .drivers.here import HereDriver

        return HereDriver(plan)
    raise LabError(f"no driver is called {name!r}", f"there are: {', '.join(DRIVERS)}")


def _start(plan: Plan, driver: Driver, say: Callable[[str], None]) -> Ready:
    times: dict[str, float] = {}
    started = time.monotonic()
    slowness = plan.accelerator.slowness if plan.accelerator else 1.0
    if plan.accelerator:
        say(f"booting {plan.spec.name} by {driver.name}; {plan.accelerator.name}: {plan.accelerator.why}")
    endpoint = driver.up()
    machine = connect(plan.spec, driver, endpoint, slowness)
    took = times["resume" if driver.is_resumed else "boot"] = time.monotonic() - started
    with contextlib.suppress(LabError):  # no room for it: later machines boot
        driver.booted(machine.close)
    say(
        f"it answered after {took:.0f} s; starting {plan.spec.engine} with {', '.join(plan.spec.containers)}, installing cntr"
    )
    times |= provisioning.provision(machine)
    ready = Ready(machine, plan, times)
    started = time.monotonic()
    with contextlib.suppress(LabError):  # the here driver has no snapshots, nor has every libvirt
        machine.snapshot(FRESH)
        ready.has_snapshot = True
        times["snapshot"] = time.monotonic() - started
    return ready


def connect(spec: MachineSpec, driver: Driver, endpoint: Endpoint, slowness: float) -> Machine:
    """The Machine at an endpoint, once it answers."""
    if endpoint.port == 0:
        from .drivers.here import HereDriver

        assert isinstance(driver, HereDriver)
        return Machine(spec, driver, driver.carrier(), slowness)
    return wait_for_ssh(spec, driver, endpoint, slowness)


def kept_here(name: str) -> list[str] | None:
    """The command prefix to enter a kept machine of the here driver."""
    from .drivers.here import HereDriver

    for note in sorted(paths.runs_dir().glob("*/state.json"), reverse=True):
        state = read_state(note.parent)
        if state.get("machine") == name and state.get("keep") and state.get("driver") == "here":
            return HereDriver(Plan(load().machine(name), note.parent)).prefixes()["root"]
    return None


def kept(name: str) -> Endpoint | None:
    """The endpoint of a kept machine of that name."""
    for note in sorted(paths.runs_dir().glob("*/state.json"), reverse=True):
        state = read_state(note.parent)
        if state.get("machine") == name and state.get("keep") and state.get("port"):
            return Endpoint("127.0.0.1", int(str(state["port"])), boxbuild.private_key())
    return None


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind like Ctrl-C, so that the machine is destroyed.

    nohup(1) and a shell's `&` have signals ignored, which a machine made of namespaces would inherit (signal(7)).
    """

    def unwind(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    wanted = {signal.SIGTERM: unwind, signal.SIGHUP: unwind, signal.SIGINT: signal.default_int_handler}
    try:
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    except ValueError:  # not the main thread, which handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
