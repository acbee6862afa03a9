"""Which modules may import which, and what the attach core may not import at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from testkit.container import SlimContainer
from tests.rules import source

# From top to bottom. A module imports only from rows below its own, also lazily and for types. A name that ends in a
# dot is a package.
CNTRFS_LAYERS = (
    ("cntr.cntrfs.__main__", "cntr.cntrfs.mount_helper", "cntr.cntrfs.probe"),
    ("cntr.cntrfs.mounting",),
    ("cntr.cntrfs.devfuse.session", "cntr.cntrfs.pyfuse3_binding"),
    ("cntr.cntrfs.devfuse.data_ops", "cntr.cntrfs.devfuse.file_ops"),
    ("cntr.cntrfs.devfuse.namespace_ops",),
    ("cntr.cntrfs.devfuse.creating", "cntr.cntrfs.devfuse.operations"),
    ("cntr.cntrfs.devfuse.request",),
    (
        "cntr.cntrfs.devfuse.lent",
        "cntr.cntrfs.devfuse.locks",
        "cntr.cntrfs.devfuse.passthrough",
        "cntr.cntrfs.devfuse.watch",
        "cntr.cntrfs.devfuse.workers",
    ),
    (
        "cntr.cntrfs.devfuse.ioctls",
        "cntr.cntrfs.devfuse.lock_table",
        "cntr.cntrfs.devfuse.mount_table",
        "cntr.cntrfs.devfuse.notify",
        "cntr.cntrfs.devfuse.replies",
        "cntr.cntrfs.devfuse.silent",
        "cntr.cntrfs.devfuse.ticker",
    ),
    ("cntr.cntrfs.devfuse.lost",),
    ("cntr.cntrfs.devfuse.rings",),
    ("cntr.cntrfs.devfuse.wire",),
    ("cntr.cntrfs.devfuse",),
    ("cntr.cntrfs.nobody",),
    ("cntr.cntrfs.core",),
    ("cntr.cntrfs.files", "cntr.cntrfs.xattrs"),
    ("cntr.cntrfs.nodes",),
    ("cntr.cntrfs.mounts",),
    ("cntr.cntrfs.fds",),
    ("cntr.cntrfs.copyup", "cntr.cntrfs.handles", "cntr.cntrfs.records"),
    ("cntr.cntrfs.changes", "cntr.cntrfs.node"),
    ("cntr.cntrfs.backing",),
    ("cntr.cntrfs.scopes",),
    ("cntr.cntrfs.mountpoint", "cntr.cntrfs.watchdog"),
    ("cntr.cntrfs.heartbeat", "cntr.cntrfs.log", "cntr.cntrfs.mount_words", "cntr.cntrfs.options", "cntr.cntrfs.trace"),
    ("cntr.cntrfs",),
)
LAYERS = (
    ("cntr.__main__",),
    ("cntr.cli.main",),
    ("cntr.cli.commands",),
    (
        "cntr.cli.elsewhere",
        "cntr.cli.image_reports",
        "cntr.cli.kubectl",
        "cntr.cli.remote_reports",
        "cntr.cli.session_reports",
    ),
    ("cntr.cli.forwarding", "cntr.cli.mounted", "cntr.cli.reports", "cntr.cli.slimming"),
    ("cntr.cli.attaching", "cntr.cli.confinement", "cntr.cli.manual", "cntr.cli.table"),
    ("cntr.cli.options",),
    ("cntr.cli.options_ports",),
    ("cntr.cli.options_sessions",),
    ("cntr.cli.options_files",),
    ("cntr.cli.options_attach",),
    ("cntr.cli.parser",),
    ("cntr.cli.meant", "cntr.cli.width"),
    ("cntr.cli",),
    ("cntr.remote.far", "cntr.remote.ssh"),
    ("cntr.attach.walk",),
    ("cntr.attach.exec_client", "cntr.attach.supervisor", "cntr.attach.tracers"),
    ("cntr.attach.monitor",),
    ("cntr.attach.launcher",),
    ("cntr.attach.identity",),
    ("cntr.attach.guard", "cntr.attach.outermost"),
    ("cntr.attach.nest", "cntr.attach.user_sockets"),
    ("cntr.attach.fileserver",),
    ("cntr.attach.exec_server", "cntr.attach.private", "cntr.attach.shares", "cntr.attach.view"),
    ("cntr.attach.exec_service",),
    ("cntr.attach.exec_handler",),
    ("cntr.attach.foreign_tools",),
    ("cntr.attach.tools",),
    ("cntr.attach.etc_files", "cntr.attach.places", "cntr.attach.terminfo"),
    ("cntr.forward.relay", "cntr.forward.standard"),
    ("cntr.forward.datagrams", "cntr.forward.dial"),
    ("cntr.forward.sides",),
    ("cntr.forward.dialer",),
    ("cntr.forward.listening",),
    ("cntr.forward",),
    ("cntr.cp.far",),
    ("cntr.cp.copy",),
    ("cntr.cp.host_end",),
    ("cntr.cp.interrupts", "cntr.cp.streams", "cntr.cp.words"),
    ("cntr.attach.joining",),
    ("cntr.attach.id_maps", "cntr.attach.own_cgroup"),
    ("cntr.attach.bus", "cntr.attach.caller", "cntr.attach.memory", "cntr.attach.x11"),
    ("cntr.attach.target",),
    ("cntr.attach.owners", "cntr.attach.stdio"),
    (
        "cntr.attach.cgroup",
        "cntr.attach.channel",
        "cntr.attach.limits",
        "cntr.attach.pty",
        "cntr.attach.relays",
        "cntr.attach.readonly_interpreter",
    ),
    ("cntr.attach.readers", "cntr.attach.seccomp"),
    (
        "cntr.attach.environment",
        "cntr.attach.remains",
        "cntr.attach.request",
        "cntr.attach.signals",
        "cntr.attach.steps",
    ),
    ("cntr.attach",),
    ("cntr.proxy.passing",),
    ("cntr.proxy.stream",),
    ("cntr.proxy.loop", "cntr.proxy.spec"),
    ("cntr.proxy",),
    ("cntr.cp.receive",),
    ("cntr.cp.files", "cntr.cp.metadata"),
    ("cntr.cp.send",),
    ("cntr.cp.links", "cntr.cp.owners"),
    ("cntr.cp.stream",),
    ("cntr.cp",),
    ("cntr.slim.splitting",),
    ("cntr.slim.page", "cntr.slim.verify"),
    ("cntr.slim.compare", "cntr.slim.job", "cntr.slim.layering"),
    ("cntr.slim.report", "cntr.slim.sources"),
    ("cntr.slim.machines",),
    ("cntr.slim.exercise", "cntr.slim.record", "cntr.slim.rules", "cntr.slim.rules."),
    ("cntr.slim.runs.containerd", "cntr.slim.runs.docker", "cntr.slim.runs.podman", "cntr.slim.runs.runtime"),
    ("cntr.slim.runs.command",),
    ("cntr.slim.runs",),
    (
        "cntr.slim.commands",
        "cntr.slim.leftovers",
        "cntr.slim.output",
        "cntr.slim.overlay",
        "cntr.slim.served",
        "cntr.slim.writer",
    ),
    ("cntr.slim.accesses", "cntr.slim.tree"),
    ("cntr.slim",),
    ("cntr.images", "cntr.images."),
    ("cntr.audit.live", "cntr.audit.replay"),
    ("cntr.audit.session",),
    ("cntr.audit.cast", "cntr.audit.hindrances", "cntr.audit.policy"),
    ("cntr.audit.behind_sudo", "cntr.audit.sinks", "cntr.audit.times", "cntr.audit.toml", "cntr.audit.who"),
    ("cntr.audit.other_sinks",),
    ("cntr.audit",),
    ("cntr.engines",),
    ("cntr.engines.lookup",),
    ("cntr.engines.listing", "cntr.engines.names"),
    ("cntr.engines.fallback",),
    ("cntr.engines.asking", "cntr.engines.podman"),
    ("cntr.engines.command_line", "cntr.engines.plugins", "cntr.engines.units", "cntr.engines.users"),
    ("cntr.engines.answer",),
    ("cntr.engines.registry",),
    (
        "cntr.engines.buildah",
        "cntr.engines.crun",
        "cntr.engines.kubernetes",
        "cntr.engines.pods",
        "cntr.engines.sysbox",
    ),
    ("cntr.engines.apptainer", "cntr.engines.containerd", "cntr.engines.containers_storage", "cntr.engines.docker"),
    ("cntr.engines.lxc", "cntr.engines.nspawn", "cntr.engines.rkt", "cntr.engines.runc"),
    ("cntr.engines.sandboxed", "cntr.engines.settings"),
    ("cntr.engines.commands", "cntr.engines.evidence", "cntr.engines.store", "cntr.engines.unixhttp"),
    ("cntr.engines.pids",),
    ("cntr.engines.container", "cntr.engines.processes", "cntr.engines.trust"),
    *CNTRFS_LAYERS,
    ("cntr.linux.nobodys_overlay",),
    ("cntr.linux.attributes",),
    (
        "cntr.linux.apart",
        "cntr.linux.bpf",
        "cntr.linux.host",
        "cntr.linux.kernelfs",
        "cntr.linux.libseccomp",
        "cntr.linux.loop",
        "cntr.linux.namespaces",
        "cntr.linux.opened",
        "cntr.linux.process",
        "cntr.linux.process_texts",
        "cntr.linux.remounting",
        "cntr.linux.seccomp",
        "cntr.linux.tracing",
    ),
    (
        "cntr.linux.any_thread",
        "cntr.linux.credentials",
        "cntr.linux.fanotify",
        "cntr.linux.io_uring",
        "cntr.linux.patience",
        "cntr.linux.sockets",
    ),
    (
        "cntr.linux.syscalls",
        "cntr.linux.file_locks",
        "cntr.linux.file_syscalls",
        "cntr.linux.procfs",
    ),
    ("cntr.linux.named", "cntr.linux.numbers"),
    ("cntr.linux",),
    ("cntr.progress",),
    ("cntr.errors",),
    ("cntr.remote", "cntr.remote.onefile"),
    ("cntr",),
)
LAB_LAYERS = (
    ("lab.__main__",),
    ("lab.verbs",),
    ("lab.plugin",),
    ("lab.cleaning", "lab.report"),
    ("lab.session",),
    ("lab.artefacts", "lab.html", "lab.provisioning"),
    ("lab.machine",),
    ("lab.drivers.here", "lab.drivers.qemu", "lab.drivers.vagrant", "lab.local", "lab.ssh"),
    ("lab.drivers",),
    ("lab.drivers.base",),
    ("lab.accel", "lab.transports"),
    ("lab.boxbuild", "lab.emulator", "lab.packages"),
    (
        "lab.cleanroom",
        "lab.demo",
        "lab.host",
        "lab.initrd",
        "lab.libvirtd",
        "lab.mmdebstrap",
        "lab.sources",
        "lab.table",
    ),
    ("lab", "lab.", "scenarios."),
)
CORE_LINES = 5460  # lines of code that a plain attach loads: each additional module takes a tenth of a millisecond, and must be reviewed
HEAVY = frozenset(
    "typing dataclasses enum re json argparse subprocess socket signal contextlib pathlib shutil "
    "threading logging tempfile inspect importlib.metadata trio pyfuse3".split()
)


def layer(module: str, layers: tuple[tuple[str, ...], ...] = LAYERS) -> int:
    for number, names in enumerate(layers):
        if any(module == name or (name.endswith(".") and module.startswith(name)) for name in names):
            return number
    pytest.fail(f"{module} is in no layer: give it one")


@pytest.mark.parametrize("module", source.modules("cntr"))
def test_layers_go_downward(module):
    upward = [
        imported
        for imported in source.all_imports(source.modules("cntr")[module])
        if imported.partition(".")[0] == "cntr" and imported != module and layer(imported) < layer(module)
    ]
    assert not upward, f"{module} imports from above"


@pytest.mark.parametrize("module", source.modules("lab"))
def test_layers_of_the_lab_go_downward(module):
    upward = [
        imported
        for imported in source.all_imports(source.modules("lab")[module])
        if imported.partition(".")[0] == "lab"
        and imported != module
        and layer(imported, LAB_LAYERS) < layer(module, LAB_LAYERS)
    ]
    assert not upward, f"{module} imports from above"


@pytest.mark.parametrize("package", ["cntr", "lab", "testkit"])
def test_imports_make_no_circle(package):
    """Not by lazy or type-only imports, either, nor within a row of LAYERS."""
    modules = source.modules(package)
    imports = {
        name: {other for other in source.all_imports(path) if other in modules and not name.startswith(f"{other}.")}
        for name, path in modules.items()
    }
    for module in modules:
        reached: set[str] = set()
        queue = [module]
        while queue:
            new = imports[queue.pop()] - reached
            reached |= new
            queue += new
        assert module not in reached, f"{module} comes back to itself"


def package_imports() -> dict[str, set[str]]:
    """The packages of cntr, and single modules beside them: each with those that it imports."""
    modules = source.modules("cntr")
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name.split(".")[1] if "." in name else ""
        names = {imported.split(".")[1] for imported in source.all_imports(path) if imported.startswith("cntr.")}
        found.setdefault(package, set()).update(names - {package})
    return {package: names for package, names in found.items() if package not in ("", "__main__")}


def packages_downward() -> list[str]:
    """The packages in an order in which each imports only from those after it. Raises AssertionError if none exists."""
    imports, order = package_imports(), []
    while imports:
        free = sorted(imports.keys() - set().union(*imports.values()), key=lambda name: (-len(imports[name]), name))
        assert free, f"these import each other: {sorted(imports)}"
        order.append(free[0])
        del imports[free[0]]
    return order


def test_packages_import_downward():
    assert packages_downward()[0] == "cli"


@pytest.mark.parametrize("module", source.modules("cntr"))
def test_cntr_knows_nothing_of_lab_tests_and_bench(module):
    reached = {name.partition(".")[0] for name in source.imports(source.modules("cntr")[module], lazy=True)}
    assert not reached & {"lab", "tests", "testkit", "bench", "scenarios", "nox", "pytest"}


@pytest.mark.parametrize("package", ["testkit", "bench", "lab"])
def test_tests_are_no_library(package):
    users = {
        module
        for module, path in source.modules(package).items()
        if any(name.partition(".")[0] == "tests" for name in source.imports(path, lazy=True))
    }
    assert not users, "what others need of tests/ belongs in testkit/"


@pytest.mark.parametrize("package", ["cntr", "lab", "testkit", "bench", "tests"])
def test_what_is_imported_is_there(package):
    """A name that has moved is found here, not only by the one test that imports it late."""
    known = {
        name for first in ("cntr", "lab", "testkit", "bench", "tests", "scenarios") for name in source.modules(first)
    }
    lost = {
        f"{module}: {name}"
        for module, path in source.modules(package).items()
        for name in source.imports(path, lazy=True)
        if name.partition(".")[0] in ("cntr", "lab", "testkit", "bench", "tests", "scenarios")
        and name not in known
        and name.rpartition(".")[0] not in known
    }
    assert not lost


@pytest.mark.parametrize("module", [name for name in source.modules("cntr") if name.startswith("cntr.engines")])
def test_engines_import_only_errors_procfs_and_each_other(module):
    allowed = ("cntr.engines", "cntr.errors", "cntr.linux", "cntr.progress")
    reached = [n for n in source.imports(source.modules("cntr")[module], lazy=True) if n.startswith("cntr")]
    assert all(name.startswith(allowed) or name == "cntr" for name in reached), reached


def test_only_one_module_speaks_to_pyfuse3():
    users = {
        module
        for module, path in source.modules("cntr").items()
        if {"pyfuse3", "trio"} & set(source.imports(path, lazy=False))
    }
    assert users == {"cntr.cntrfs.pyfuse3_binding"}


def test_only_the_kernel_rooms_hold_ctypes():
    users = {
        f"{module}"
        for package in ("cntr", "lab")
        for module, path in source.modules(package).items()
        if {name.partition(".")[0] for name in source.imports(path, lazy=True)} & {"ctypes", "_ctypes", "cffi"}
    }
    rooms = (
        "any_thread", "bpf", "credentials", "fanotify", "file_syscalls", "io_uring", "libseccomp", "process", "seccomp",
        "syscalls", "tracing",
    )  # fmt: skip
    assert users <= {f"cntr.linux.{room}" for room in rooms}, users


def test_of_the_lab_only_the_clean_room_uses_the_kernel_room():
    users = {
        module
        for package in ("lab", "scenarios")
        for module, path in source.modules(package).items()
        if any(name.partition(".")[0] == "cntr" for name in source.imports(path, lazy=True))
    }
    assert users <= {"lab.cleanroom"}, users


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a Python without site has imported at the end of running ARGUMENTS (-X importtime)."""
    command = [sys.executable, "-S", "-X", "importtime", *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(source.ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(rows) > 10, done.stderr
    assert done.returncode == 0, done.stderr
    return {row.rpartition("|")[2].strip() for row in rows}


@pytest.mark.parametrize(
    "statement",
    [
        "import cntr.cli.main",
        "import cntr.attach.walk",
        "import cntr.engines.docker",
        "import cntr.attach.fileserver, cntr.cntrfs.mounting",
    ],
)
def test_importing_is_cheap(statement):
    assert not loaded_by("-c", statement) & HEAVY


@pytest.mark.skipif(os.geteuid() != 0, reason="an attach needs root")
def test_a_whole_attach_imports_nothing_heavy_and_no_terminal_code():
    with SlimContainer("imports") as container:
        start = "from cntr.__main__ import main; main()"
        # A bare number may be a name to an engine.
        loaded = loaded_by("-c", start, "attach", f"pid:{container.pid}", "--", "true")
    assert "cntr.attach.supervisor" in loaded
    assert not loaded & (
        HEAVY
        | {"cntr.attach.pty", "termios", "cntr.attach.fileserver", "cntr.cli.reports", "cntr.cli.manual"}
        | {"cntr.attach.seccomp", "cntr.attach.shares", "cntr.attach.user_sockets"}
    )
    known = source.modules("cntr")
    if "cntr.linux.nobodys_overlay" in loaded:  # an overlay is mounted somewhere on this machine
        loaded -= {"cntr.linux.nobodys_overlay", "cntr.linux.sockets"}
    assert sum(source.code_lines(known[module]) for module in loaded & known.keys()) <= CORE_LINES


def test_a_sessions_file_server_loads_no_more_than_it_serves_with():
    """By devfuse: it starts with every session of the fuse transport, which waits for its imports."""
    loaded = loaded_by("-c", "import cntr.attach.fileserver, cntr.cntrfs.mounting, cntr.cntrfs.devfuse.session")
    assert "cntr.cntrfs.devfuse.session" in loaded
    assert not loaded & {
        "logging",
        "dataclasses",
        "inspect",
        "traceback",
        "signal",
        "socket",
        "queue",
        "argparse",
        "json",
        "subprocess",
    }
