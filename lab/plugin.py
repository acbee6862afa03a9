"""The pytest plugin for scenarios/: machines as fixtures, the matrix, expected failures, artefacts, the report."""

from __future__ import annotations

import contextlib
import os
import shutil
import tomllib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import artefacts, paths, report, session
from .errors import LabError, LostMachine
from .results import TRANSPORTS
from .table import SUITES, load

NO_TRANSPORT = "-"
SHOWN = 300
"""Characters of a value that a failed comparison shows."""
EXPECTED_FILE = paths.LAB / "expected.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lab's options, which `python -m lab` sets."""
    group = parser.getgroup("lab")
    group.addoption("--lab-machines", default="docker", help="names from lab/boxes.json, comma-separated")
    group.addoption("--lab-transports", default=",".join(TRANSPORTS))
    group.addoption("--lab-gate", action="store_true", help="skip what only the whole matrix runs")
    group.addoption("--lab-driver", default="auto")
    group.addoption("--lab-accel", default="auto")
    group.addoption("--lab-cpus", type=int, default=0)
    group.addoption("--lab-mirror", default=None)
    group.addoption("--lab-libvirt-uri", default="")
    group.addoption("--lab-keep-on-fail", action="store_true")
    group.addoption("--lab-report", default=str(paths.REPOSITORY / "reports" / "lab"))
    for suite in SUITES:
        group.addoption(f"--{suite}-dir", default="", help=f"an installed {suite}, for the compliance scenario")
        group.addoption(f"--{suite}-tests", default="", help="what of it")


def pytest_configure(config: pytest.Config) -> None:
    """Markers, and the report on the controlling process."""
    for line in (
        "container(name): the scenario needs this container on the machine",
        "engines(*names): the scenario is about these engines",
        "no_transport: no session is opened, so it runs once on each machine",
        "not_gate: takes too long for the gate, or is no check: only the whole matrix runs it",
        "once_a_box: about the box's kernel or other tools and not about an engine, so one machine of each box runs it",
        "tool(name): the scenario uses this tool of the machine's",
        "systemd: the machine must run systemd",
        "vm: needs a machine (on the host it would reach outside of the lab's namespaces)",
    ):
        config.addinivalue_line("markers", line)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(report.Collector(config), "lab-report")
        unwinding = contextlib.ExitStack()  # also with xdist workers: the report is written in the controlling process
        unwinding.enter_context(session.terminated_like_interrupted())
        config.add_cleanup(unwinding.close)


def lab_options(config: pytest.Config) -> session.Options:
    """The options for machines."""
    return session.Options(
        driver=config.getoption("--lab-driver"),
        accel=config.getoption("--lab-accel"),
        mirror=config.getoption("--lab-mirror"),
        libvirt_uri=config.getoption("--lab-libvirt-uri"),
        keep_on_fail=config.getoption("--lab-keep-on-fail"),
        cpus=config.getoption("--lab-cpus"),
    )


# -- the matrix ------------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Machine × transport for each scenario."""
    if "ready" not in metafunc.fixturenames:
        return
    machines = metafunc.config.getoption("--lab-machines").split(",")
    metafunc.parametrize("ready", machines, indirect=True, scope="session")
    if "transport" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--lab-transports").split(",")
        metafunc.parametrize("transport", chosen, scope="session")


def machine_of(nodeid: str, machines: list[str]) -> str:
    """The machine in a test's id."""
    parameters = f"-{nodeid.partition('[')[2].removesuffix(']')}-"
    return max((name for name in machines if f"-{name}-" in parameters), key=len, default="")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send all scenarios of a machine to one process. (By ids: xdist's own groups are lost if it cannot change a test's
    id.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByMachine(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return machine_of(nodeid, config.getoption("--lab-machines").split(","))

    return ByMachine(config, log)


def coordinates(item: pytest.Item) -> tuple[str, str]:
    """Machine and transport of a cell."""
    parameters = getattr(item, "callspec", None)
    values = parameters.params if parameters else {}
    return values.get("ready", ""), values.get("transport", NO_TRANSPORT)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order by machine, then transport; mark expected failures with their reason."""
    machines = config.getoption("--lab-machines").split(",")
    order = (*config.getoption("--lab-transports").split(","), NO_TRANSPORT)
    ordered = [i for i in items if coordinates(i)[0] in machines]
    ordered.sort(key=lambda i: (machines.index(coordinates(i)[0]), order.index(coordinates(i)[1])))
    items[:] = ordered + [i for i in items if coordinates(i)[0] not in machines]
    rows = read_expected(EXPECTED_FILE.read_text())
    for item in ordered:
        machine, transport = coordinates(item)
        for row in rows:
            if matches(row, machine, load().machine(machine).engine, transport, scenario_name(item)):
                item.add_marker(pytest.mark.xfail(reason=row["reason"], strict=True, raises=AssertionError))


def read_expected(text: str) -> list[dict[str, str]]:
    """The rows of expected.toml. Raises LabError if a row has no reason or no scenario."""
    rows: list[dict[str, str]] = tomllib.loads(text).get("expected", [])
    for row in rows:
        if not row.get("reason") or not row.get("scenario"):
            raise LabError(
                f"{EXPECTED_FILE.name}: a row needs scenario and reason, but this one does not have both: {row}"
            )
    return rows


def matches(row: dict[str, str], machine: str, engine: str, transport: str, scenario: str) -> bool:
    """Whether an expected failure applies to this cell; a missing key matches everything."""
    facts = {"machine": machine, "engine": engine, "transport": transport, "scenario": scenario}
    return all(facts[key] in value.split() for key, value in row.items() if key in facts)


def scenario_name(item: pytest.Item) -> str:
    """The row of the report; each case of a parametrized scenario has its own row."""
    name: str = getattr(item, "originalname", item.name).removeprefix("test_")
    parameters = getattr(item, "callspec", None)
    machine, transport = coordinates(item)
    case = parameters.id.replace(machine, "", 1).replace(transport, "", 1).strip("-") if parameters else ""
    return f"{name}_{case}" if case else name


# -- fixtures --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ready(request: pytest.FixtureRequest) -> Iterator[session.Ready]:
    """A ready machine; one at a time in each process."""
    name = request.param
    config = request.config
    failures = config.stash.setdefault(FAILURES, set())
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(session.running(name, lab_options(config), lambda: name in failures))
        except LabError as error:
            # Otherwise pytest would try to make the machine again for each of its scenarios.
            raise Unmade(f"machine {name} could not be made: {error.message}\n{error.hint}") from error
        config.stash.setdefault(FACTS, {})[name] = made.facts()
        yield made


class Unmade(Exception):
    """The machine could not be made, so its scenarios were not tried."""


FAILURES = pytest.StashKey[set[str]]()
FACTS = pytest.StashKey[dict[str, dict[str, str]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests, naming what is missing."""
    machine, _ = coordinates(item)
    if not machine:
        return
    spec = load().machine(machine)
    for mark in item.iter_markers("container"):
        if mark.args[0] not in spec.containers:
            pytest.skip(f"{machine} has no {mark.args[0]!r} container (lab/boxes.json)")
    for mark in item.iter_markers("engines"):
        if spec.engine not in mark.args:
            pytest.skip(f"about {', '.join(mark.args)}, this is {spec.engine}")
    if item.config.getoption("--lab-gate") and item.get_closest_marker("not_gate"):
        pytest.skip("the whole matrix runs it, the gate does not")
    if item.get_closest_marker("once_a_box"):
        machines = item.config.getoption("--lab-machines").split(",")
        first = next(name for name in machines if load().machine(name).box == spec.box)
        if machine != first:
            pytest.skip(f"once for each box is enough, with any engine: {first} runs it")
    here = lab_options(item.config).chosen_driver() == "here"
    if here and item.get_closest_marker("vm"):
        pytest.skip("needs a machine of its own; this is --driver here")
    for mark in item.iter_markers("tool"):
        if here and not shutil.which(mark.args[0]):
            pytest.skip(f"{mark.args[0]} is not installed on this host")
    if here and item.get_closest_marker("systemd") and not Path("/run/systemd/system").exists():
        pytest.skip("needs systemd, which does not run on this host")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Tell a lost machine from a failed scenario; collect artefacts while the machine still exists."""
    outcome = yield
    machine, transport = coordinates(item)
    if not machine:
        return outcome
    outcome.user_properties.append(("about", (item.function.__doc__ or "").strip().split("\n")[0]))  # type: ignore[attr-defined]
    outcome.user_properties.append(("cell", [machine, transport, scenario_name(item)]))
    facts = item.config.stash.get(FACTS, {}).get(machine)
    if facts:
        outcome.user_properties.append(("facts", facts))
    if outcome.failed and call.excinfo is not None:
        item.config.stash.setdefault(FAILURES, set()).add(machine)
        lost = isinstance(call.excinfo.value, (LostMachine, Unmade))
        outcome.user_properties.append(("lost", lost))
        if isinstance(call.excinfo.value, Unmade):
            outcome.longrepr = str(call.excinfo.value)
        outcome.longrepr = report.failure_text(call.excinfo.value) or outcome.longrepr
        made = getattr(item, "funcargs", {}).get("ready")
        if made is not None:
            place = (
                Path(item.config.getoption("--lab-report"))
                / "artefacts"
                / f"{machine}.{transport}.{scenario_name(item)}"
            )
            files = artefacts.collect(made.machine, place, str(outcome.longrepr), lost, repro(item, machine))
            outcome.user_properties.append(("artefacts", files))
            if not (lost or lab_options(item.config).keep_on_fail or call.when == "teardown"):
                with contextlib.suppress(LostMachine, AssertionError):  # the next scenario reports the loss
                    made.refresh()
    return outcome


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str]:
    """The message of a failed comparison in the format of `machine.succeed`: expected and observed."""
    wanted, seen = (left, right) if op in ("in", "not in") else (right, left)
    words = {"==": "", "in": "something with ", "not in": "nothing with "}.get(op, f"{op} ")
    return ["as expected", f"expected: {words}{_short(wanted)}", f"seen:     {_short(seen)}"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"


def repro(item: pytest.Item, machine: str) -> str:
    """The command that runs this cell again and keeps the machine."""
    driver = lab_options(item.config).chosen_driver()
    return f"python -m lab {machine} --driver {driver} --keep-on-fail --scenario {getattr(item, 'originalname', item.name)}"


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Forget the scenario's commands."""
    made = getattr(item, "funcargs", {}).get("ready")
    if made is not None:
        made.machine.history.clear()


def pytest_xdist_auto_num_workers() -> int:
    """One machine per two cores."""
    return max(1, (os.cpu_count() or 2) // 2)
