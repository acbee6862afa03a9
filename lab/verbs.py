"""The verbs of `python -m lab`. Each takes the parsed options and returns the exit status."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import boxbuild, emulator, host, paths, session
from .accel import choose
from .drivers import Endpoint
from .errors import LabError
from .results import BAD, TRANSPORTS
from .table import SUITES, TIERS, load


def _options(told: argparse.Namespace) -> session.Options:
    return session.Options(told.driver, told.accel, told.mirror, told.libvirt_uri, told.keep_on_fail)


def machine_names(words: list[str]) -> list[str]:
    """Machines for words: `all`, a tier, or names. Raises LabError for any other word."""
    table = load()
    names: list[str] = []
    for word in words:
        names += (
            table.tier("full") if word == "all" else table.tier(word) if word in TIERS else [table.machine(word).name]
        )
    return list(dict.fromkeys(names))


def select_failed(told: argparse.Namespace) -> None:
    """Restrict the options to cells that failed in the last report, possibly with a few more. Raises LabError if none
    failed.
    """

    report = Path(told.report)
    try:
        cells = json.loads((report / "results.json").read_text())["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise LabError(f"{report} holds no report of an earlier run: {error}", "run without --failed first") from error
    bad = [cell for cell in cells if cell["outcome"] in BAD]
    if not bad:
        raise LabError(f"nothing failed in {report}", "run without --failed")
    told.machines = list(dict.fromkeys(cell["machine"] for cell in bad))
    told.transports = ",".join(dict.fromkeys(cell["transport"] for cell in bad if cell["transport"] in TRANSPORTS))
    told.report = str(report / "again")
    if not any(cell["outcome"] == "lost" for cell in bad):
        # pytest puts the parameters of a case in brackets, so each word is searched for separately.
        words = ([w for w in cell["scenario"].split("_") if w not in ("and", "or", "not")] for cell in bad)
        told.scenario = " or ".join(dict.fromkeys(f"({' and '.join(some)})" for some in words))


def installed_suites(told: argparse.Namespace) -> dict[str, Path]:
    """Suite → directory of a built copy, for the suites requested.

    Raises LabError if there is none, or if tests of another suite are named.
    """
    found = {}
    for suite, proof in SUITES.items():
        if getattr(told, f"{suite}_tests") and not getattr(told, f"{suite}_dir"):
            raise LabError(
                f"--{suite}-tests selects tests of an installed {suite}", f"say where it is: --{suite}-dir DIR"
            )
        if told_directory := getattr(told, f"{suite}_dir"):
            found[suite] = Path(told_directory).resolve()
            if not (found[suite] / proof).exists():
                raise LabError(
                    f"{told_directory} holds no built {suite}: there is no {proof} in it", "build it there first"
                )
    return found


def run(told: argparse.Namespace) -> int:
    """Scenarios: build the boxes (with progress), then run pytest with the lab's plugin."""
    gate = told.machines == ["gate"]
    if told.failed:
        select_failed(told)
    names = machine_names(told.machines)
    installed = installed_suites(told)
    transports = told.transports or ("mount,devfuse" if gate else "mount,devfuse,pyfuse3")
    options = _options(told)
    driver = options.chosen_driver()
    jobs, cpus = told.jobs or 1, told.cpus
    if driver != "here":
        host.require(driver)
        built = [
            boxbuild.ensure(load().boxes[box], told.mirror)
            for box in dict.fromkeys(load().machines[n].box for n in names)
        ]
        accelerator = choose(built[0], told.accel)
        newest = emulator.ensure(told.mirror) if driver == "qemu" and accelerator.name == "tcg" else None
        if not told.jobs and accelerator.name == "kvm":
            jobs = max(1, min(len(names), (os.cpu_count() or 2) // 2))
        elif not cpus and jobs > 1 and accelerator.name == "tcg":
            # An emulated processor that waits for a core delays the others of its machine.
            cpus = max(1, (os.cpu_count() or 2) // jobs)
        print(
            f"lab: {', '.join(names)}; driver {driver}{f' ({newest.about})' if newest else ''}; "
            f"{accelerator.name}: {accelerator.why}; {jobs} at a time"
            + (f", with {cpus} processor{'s' * (cpus > 1)} each" if cpus else ""),
            flush=True,
        )
    else:
        print(
            f"lab: {', '.join(names)}; driver here: this host's kernel and packages, in namespaces of the lab's own",
            flush=True,
        )
    report = Path(told.report).resolve()
    report.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(report / "artefacts", ignore_errors=True)  # of an earlier run
    command = [
        sys.executable, "-m", "pytest", str(paths.REPOSITORY / "scenarios"), "-q", "--no-header",
        "--tb=no", "-rN", "-p", "no:cacheprovider",
        "-o", "timeout=0", "-o", "console_output_style=classic", f"--junitxml={report / 'junit.xml'}",
        f"--lab-machines={','.join(names)}", f"--lab-transports={transports}", f"--lab-driver={driver}",
        f"--lab-accel={told.accel}", f"--lab-libvirt-uri={told.libvirt_uri}", f"--lab-report={report}",
        f"--lab-cpus={cpus}",
    ]  # fmt: skip
    if gate:
        command.append("--lab-gate")
    if told.mirror:
        command.append(f"--lab-mirror={told.mirror}")
    if told.keep_on_fail:
        command.append("--lab-keep-on-fail")
    if told.scenario:
        command += ["-k", told.scenario]
    for suite, directory in installed.items():
        command += [f"--{suite}-dir={directory}", f"--{suite}-tests={getattr(told, f'{suite}_tests')}"]
    if jobs > 1:
        command += ["-n", str(jobs), "--dist", "loadscope"]
    # Without rewriting of assertions and byte code in the checkout, from which `lab` is imported.
    environment = {**os.environ, "PYTHONPATH": str(paths.REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, cwd=paths.REPOSITORY, env=environment)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: process.terminate())
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal has sent SIGINT to pytest as well: let it destroy its machines.
            continue
        if jobs > 1 and status > 1:  # interrupted: the processes with the machines were ended before they could unwind
            from . import cleaning

            for line in cleaning.clean(kept=False):
                if line.startswith("removing"):
                    print(f"lab: {line}", flush=True)
        return status


def try_(told: argparse.Namespace) -> int:
    """An interactive sandbox that leaves nothing."""
    options = _options(told)
    print(f"lab: making {told.machine} ready; under emulation that takes about a minute", flush=True)
    with session.running(told.machine, options, say=lambda text: print(f"lab: {text}", flush=True)) as ready:
        if not told.command:
            print(_welcome(ready))
        return _enter(ready, told.command)


def shell(told: argparse.Namespace) -> int:
    """A shell in a machine kept by an earlier run; without one, in a new machine."""
    here = session.kept_here(told.machine)
    if here is not None:
        print(f"lab: {told.machine} as it was kept, on this host; it remains after this shell", flush=True)
        return subprocess.call([*here, *(["sh", "-c", told.command] if told.command else ["bash", "-i"])])
    endpoint = session.kept(told.machine)
    if endpoint is None:
        print(f"lab: no {told.machine} was kept; starting one", flush=True)
        return try_(told)
    print(f"lab: {told.machine} as it was kept; it stays after this shell (python -m lab clean removes it)", flush=True)
    return _ssh(endpoint, told.command)


def _enter(ready: session.Ready, command: str) -> int:
    driver = ready.machine.driver
    endpoint = getattr(driver, "endpoint", None)
    if endpoint is None or endpoint.port == 0:
        from .drivers.here import HereDriver

        assert isinstance(driver, HereDriver)
        return subprocess.call([*driver.prefixes()["root"], *(["sh", "-c", command] if command else ["bash", "-i"])])
    return _ssh(endpoint, command)


def _ssh(endpoint: Endpoint, command: str) -> int:
    line = [
        "ssh", "-q", "-i", str(endpoint.key), "-p", str(endpoint.port), "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip
    if sys.stdin.isatty() or not command:
        line.append("-t")
    return subprocess.call([*line, f"vagrant@{endpoint.host}", *([command] if command else [])])


def _welcome(ready: session.Ready) -> str:
    spec = ready.machine.spec
    return (
        f"\nYou are `vagrant` (sudo works) on a machine with {spec.engine}.\n"
        f"These containers run: {', '.join(spec.containers)}. Try:\n"
        f"  sudo cntr ps\n"
        f"  sudo cntr attach slim               your tools, beside a container of one file; `exit` leaves it\n"
        f"  sudo cntr attach slim -- gdb -q -iex 'set sysroot /var/lib/cntr' -p 1       then: bt\n"
        f"  sudo cntr attach box -- ls /var/lib/cntr\n"
        f"The machine is removed when you leave.\n"
    )


def box(told: argparse.Namespace) -> int:
    """Build boxes."""
    table = load()
    for name in told.boxes or table.boxes:
        if name not in table.boxes:
            raise LabError(f"no box is called {name!r}", f"there are: {', '.join(table.boxes)}")
        print(boxbuild.ensure(table.boxes[name], told.mirror).directory)
    return 0


def doctor(told: argparse.Namespace) -> int:
    """Print what is missing, with the fix; return 0 if scenarios can run in machines here."""
    checks = host.checks()
    if told.json:
        print(json.dumps([vars(check) for check in checks], indent=1))
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'MISS'}  {check.what:34} {check.seen}")
            if not check.ok:
                print(f"      for {check.purpose}: {check.fix}")
    return 0 if all(check.ok for check in checks if check.needed) else 1


def clean(told: argparse.Namespace) -> int:
    """Remove what interrupted or kept runs left; machines of active runs are left alone."""
    from . import cleaning

    for line in cleaning.clean(boxes=told.boxes):
        print(f"lab: {line}")
    return 0


def list_(told: argparse.Namespace) -> int:
    """The table, for people."""
    table = load()
    for machine in table.machines.values():
        print(
            f"{machine.name:16} {machine.tier:5} box {machine.box:9} {machine.memory_mib} MiB  {', '.join(machine.containers)}"
        )
    for one in table.boxes.values():
        built = boxbuild.cached(one)
        print(f"box {one.name:12} {'cached: ' + str(built.directory) if built else 'not built yet'}\n    {one.about}")
    return 0


def vagrant_environment(told: argparse.Namespace) -> int:
    """JSON for the Vagrantfile when vagrant is called by hand."""
    from .drivers import vagrant

    print(json.dumps(vagrant.environment_by_hand()))
    return 0


VERBS = {
    "run": run,
    "try": try_,
    "shell": shell,
    "box": box,
    "doctor": doctor,
    "clean": clean,
    "list": list_,
    "vagrant-environment": vagrant_environment,
}
