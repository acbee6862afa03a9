"""The parts of the lab that need no machine."""

import ast
import contextlib
import dataclasses
import gc
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("tomllib", reason="the lab and the packages are made with Python 3.11 or newer")

from lab import (
    boxbuild,
    emulator,
    host,
    html,
    initrd,
    libvirtd,
    mmdebstrap,
    paths,
    plugin,
    report,
    sources,
    table,
    verbs,
)
from lab.__main__ import arguments
from lab.accel import Accelerator
from lab.drivers.base import Endpoint, Plan, free_port
from lab.drivers.qemu import QemuDriver
from lab.errors import CommandFailed, LabError
from lab.local import LocalCarrier
from lab.machine import Machine, is_greeted
from lab.report import Collector
from lab.results import Cell, Run
from lab.transports import owned_by_root
from testkit.processes import running
from testkit.waiting import wait_until

needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-system-x86_64")),
    reason="qemu-img and qemu-system-x86_64 are not both installed",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNTR_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_machine_has_box_script_and_known_containers():
    loaded = table.load()
    text = (paths.LAB / "provision" / "lib.sh").read_text()
    for machine in loaded.machines.values():
        assert (paths.LAB / "provision" / f"{machine.engine}.sh").exists(), machine.name
        assert machine.containers, machine.name
        for container in machine.containers:
            assert f"#   {container} " in text, f"{container} is not described in lib.sh"


def test_the_gate_holds_what_it_must():
    assert {"docker", "podman-rootless", "nspawn"} <= set(table.load().tier("gate"))
    assert set(table.load().tier("gate")) < set(table.load().tier("full"))


def test_a_machine_on_an_unknown_box_is_refused():
    raw = json.loads(table.TABLE_FILE.read_text())
    raw["machines"]["docker"]["box"] = "nowhere"
    with pytest.raises(LabError, match="nowhere"):
        table.parse(json.dumps(raw))


def test_names_tiers_and_all():
    assert verbs.machine_names(["nspawn", "docker", "nspawn"]) == ["nspawn", "docker"]
    machines = table.load().machines
    assert verbs.machine_names(["all"]) == [name for name, machine in machines.items() if machine.tier != "named"]
    with pytest.raises(LabError, match="no machine is called"):
        verbs.machine_names(["dokcer"])


# -- boxes -------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_inputs(cache, monkeypatch, tmp_path):
    box = table.load().boxes["trixie"]
    before = boxbuild.fingerprint(box)
    assert boxbuild.fingerprint(box) == before
    copy = tmp_path / "lab"
    subprocess.run(["cp", "-r", str(paths.LAB), str(copy)], check=True)
    monkeypatch.setattr(paths, "LAB", copy)
    assert boxbuild.fingerprint(box) == before
    with (copy / "box" / "customize.sh").open("a") as script:
        script.write("true\n")
    assert boxbuild.fingerprint(box) != before
    assert boxbuild.cached(box) is None


def test_modules_load_after_what_they_need():
    dependencies = (
        "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz\n"
        "kernel/fs/jbd2/jbd2.ko.xz:\nkernel/fs/mbcache.ko.xz:\n"
        "kernel/drivers/block/virtio_blk.ko.xz:\nkernel/arch/x86/crypto/crc32c-intel.ko.xz:\n"
    )
    order = [
        path.rsplit("/", 1)[-1] for path in initrd.module_order(dependencies, "kernel/drivers/virtio/virtio_pci.ko")
    ]
    assert order.index("jbd2.ko.xz") < order.index("ext4.ko.xz")
    assert order.index("mbcache.ko.xz") < order.index("ext4.ko.xz")
    assert order[0] == "crc32c-intel.ko.xz"


def test_a_kernel_without_the_disks_driver_is_refused():
    with pytest.raises(LabError, match="virtio_blk"):
        initrd.module_order("", "kernel/drivers/virtio/virtio_pci.ko kernel/fs/ext4/ext4.ko")


def test_the_initrd_is_an_archive_that_cpio_unpacks(tmp_path):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "modules.dep").write_text("kernel/virtio_blk.ko:\n")
    (modules / "modules.builtin").write_text("kernel/virtio_pci.ko\nkernel/ext4.ko\n")
    (modules / "kernel").mkdir()
    (modules / "kernel" / "virtio_blk.ko").write_bytes(b"module")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF")
    archive = gzip.decompress(initrd.build(busybox, modules, paths.LAB / "box" / "init"))
    out = tmp_path / "out"
    out.mkdir()
    entries = _cpio(archive)
    assert entries["init"] == (0o100755, (paths.LAB / "box" / "init").read_bytes())
    assert entries["modules/order"][1] == b"virtio_blk.ko\n"
    assert entries["dev/console"][0] == 0o020600


def _cpio(archive):
    """{name: (mode, data)} of a newc archive (cpio(5))."""
    entries, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (mode, archive[at : at + size])
        at += (size + 3) & ~3


def test_the_mirror_is_the_one_this_machine_uses():
    targets = "http://mirror.example/debian/|Debian|Debian\nhttp://mirror.example/sec/|Debian|Debian-Security\nhttp://x/|Other|Other\n"
    assert sources.mirrors(targets) == ("http://mirror.example/debian", "http://mirror.example/sec")
    assert sources.mirrors("") == ("", "")
    # What apt prints before its first update, when it only knows its sources.
    unknown = "http://other.example/node|$(ORIGIN)|$(LABEL)|nodistro\n"
    for uri, release in (("debian", "trixie"), ("debian", "trixie-updates"), ("debian-security", "trixie-security")):
        unknown += f"http://mirror.example/{uri}/|$(ORIGIN)|$(LABEL)|{release}\n"
    assert sources.mirrors(unknown) == ("http://mirror.example/debian", "http://mirror.example/debian-security")
    assert sources.lines("trixie", "http://told.example/debian") == ["deb http://told.example/debian trixie main"]


def test_the_box_keeps_no_mirror():
    text = (paths.LAB / "box" / "customize.sh").read_text()
    assert "http" not in text
    for place in ("99mmdebstrap", "/var/lib/apt/lists/", "/var/log/apt", "/etc/resolv.conf"):
        assert place in text


def test_the_accelerator_is_tried_once_a_box(cache, monkeypatch):
    from lab import accel
    from lab.boxbuild import BuiltBox

    cache.mkdir()
    tried = []
    monkeypatch.setattr(accel, "probe", lambda built: tried.append(built.box.name) or accel.Accelerator("tcg", "no"))
    boxes = [BuiltBox(box, cache / name) for name, box in table.load().boxes.items()]
    for built in boxes * 2:
        assert accel.choose(built).why == "no"
    assert tried == list(table.load().boxes)
    (cache / "accelerator.json").write_text('{"key": "of an older lab"}')
    accel.choose(boxes[0])
    assert len(tried) == len(boxes) + 1


@pytest.mark.parametrize(("says", "used"), [("10.0.2", True), ("11.1.0", True), ("7.2.22", False)])
def test_a_host_with_an_old_qemu_emulates_by_a_newer_one(says, used, cache, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / emulator.PROGRAM
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho 'QEMU emulator version {says} (Debian 1:{says}+dfsg)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    unpacked = []

    def unpack(place, mirror):
        unpacked.append(mirror)
        place.mkdir(parents=True)
        (place / "done").write_text("10.0.13")

    monkeypatch.setattr(emulator, "_unpack", unpack)
    found = [emulator.ensure("http://mirror"), emulator.ensure("http://mirror")]
    assert unpacked == ([] if used else ["http://mirror"])  # only once; then it is in the cache
    assert found[0] == found[1]
    assert found[0].about == (f"QEMU {says}" if used else "QEMU 10.0.13 of trixie, unpacked")
    assert (found[0].command == (emulator.PROGRAM,)) is used


def test_a_qemu_that_cannot_be_unpacked_is_an_error_and_leaves_nothing(cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    (cache / "qemu").mkdir(parents=True)
    monkeypatch.setattr(
        mmdebstrap, "command", lambda options, suite, target, mirror: ["sh", "-c", "echo no such mirror"]
    )
    with pytest.raises(LabError, match="no such mirror"):
        emulator._unpack(cache / "qemu" / "x", None)
    assert [p.name for p in (cache / "qemu").iterdir()] == ["x.log"]


def test_a_checkout_is_copied_without_history_and_byte_code(tmp_path):
    for name in (".git/config", "src/__pycache__/x.pyc", "src/.github", "src/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as archive:
        archive.add(tmp_path, ".", filter=owned_by_root)
        assert sorted(archive.getnames()) == [".", "./src", "./src/.github", "./src/x.py"]
        assert {entry.uname for entry in archive} == {"root"}


def qemu_driver(directory, cpus=1, accelerator="tcg", about="QEMU 10.0", name="run"):
    box = directory / "box"
    box.mkdir(exist_ok=True)
    (directory / name).mkdir(exist_ok=True)
    loaded = table.load()
    spec = dataclasses.replace(loaded.machine("docker"), cpus=cpus)
    built = boxbuild.BuiltBox(loaded.boxes[spec.box], box)
    emulator_ = emulator.Emulator(("false",), about)
    return QemuDriver(Plan(spec, directory / name, built, Accelerator(accelerator, ""), emulator=emulator_))


def make_image(place):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(place), "1M"], check=True)


def test_a_kept_boot_is_for_machines_of_one_shape(tmp_path):
    kept = {qemu_driver(tmp_path, **other)._kept_boot() for other in ({}, {"cpus": 2}, {"about": "QEMU 10.1"})}
    assert len(kept) == 3
    assert {path.parent for path in kept} == {tmp_path / "box"}
    assert qemu_driver(tmp_path)._kept_boot() == qemu_driver(tmp_path, name="another")._kept_boot()


def test_an_emulated_machine_begins_where_one_of_its_box_had_booted(tmp_path):
    driver = qemu_driver(tmp_path)
    driver._kept_boot().write_text("disk and memory")
    driver._make_disk()
    assert driver.is_resumed
    assert driver._disk.read_text() == "disk and memory"


@pytest.mark.parametrize("room", [True, False], ids=["room", "no-room"])
def test_the_first_emulated_machine_is_kept_as_it_booted(tmp_path, monkeypatch, room):
    driver, said = qemu_driver(tmp_path), []
    driver._disk.write_text("disk and memory")
    monkeypatch.setattr(driver, "_monitor", said.append)
    if not room:
        monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.check_call(["false"]))
    driver.booted(lambda: said.append("hang up"))
    assert said == ["hang up", "savevm booted", "stop", "cont"]
    kept = driver._kept_boot()
    assert list(kept.parent.iterdir()) == ([kept] if room else [])
    assert list(driver._dir.iterdir()) == [driver._disk]
    if room:
        assert kept.read_text() == "disk and memory"
        driver.booted(lambda: pytest.fail("it has been kept already"))


@needs_qemu
def test_a_kept_boot_that_qemu_cannot_load_is_removed(tmp_path):
    driver = qemu_driver(tmp_path)
    make_image(driver._built.disk)
    driver._kept_boot().write_text("no such thing")
    with pytest.raises(LabError, match="did not start machine docker"):
        driver.up()
    assert not driver._kept_boot().exists()
    assert driver._disk.read_bytes()[:3] == b"QFI"  # the box's own kernel, to boot from


@needs_qemu
def test_a_kept_boot_that_cannot_be_copied_is_passed_over(tmp_path):
    driver = qemu_driver(tmp_path)
    make_image(driver._built.disk)
    driver._kept_boot().mkdir()
    driver._make_disk()
    assert not driver.is_resumed
    assert driver._disk.read_bytes()[:3] == b"QFI"


def test_a_machine_without_a_disk_says_why(tmp_path, monkeypatch):
    driver = qemu_driver(tmp_path)
    refused = subprocess.CompletedProcess([], 1, "", "No space left on device\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(LabError, match="no disk for machine docker: No space left"):
        driver._make_disk()


@needs_qemu
def test_a_machine_with_kvm_boots(tmp_path):
    driver = qemu_driver(tmp_path, accelerator="kvm")
    make_image(driver._built.disk)
    driver._kept_boot().write_text("from an emulated one")
    driver._make_disk()
    assert not driver.is_resumed


def test_a_background_commands_end_waits_for_no_dead_process(tmp_path):
    note = tmp_path / "parent"
    unreaped = (  # the child is a zombie in the command's process group, its parent is not in it
        "import os, signal; group = os.getpgrp()\n"
        "if os.fork() == 0:\n    os.setpgid(0, 0)\n    if os.fork() == 0: os.setpgid(0, group); os._exit(0)\n"
        f"    open({str(note)!r}, 'w').write(str(os.getpid())); signal.pause()"
    )
    machine = Machine(table.load().machine("docker"), None, LocalCarrier({"root": []}))
    with machine.background(f"{shlex.quote(sys.executable)} -c {shlex.quote(unreaped)}; sleep 61.047"):
        machine.wait_until_succeeds(f"pgrep -xf 'sleep 61.047' && test -s {note}")
    os.kill(int(note.read_text()), signal.SIGKILL)
    assert machine.history[-1].returncode == 0  # 9: it had to be killed


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server


def endpoint_of(server):
    return Endpoint("127.0.0.1", server.getsockname()[1], Path("/nonexistent"))


def test_a_machine_is_greeted_by_whichever_connection_is_answered_first(listener):
    """Before the machine has an address, QEMU's user-mode network accepts connections that are never answered."""
    with contextlib.ExitStack() as silent:

        def serve():
            for answer in ("none", "refused", "none", "greeted"):
                link, _ = listener.accept()
                if answer == "refused":
                    link.close()
                    continue
                silent.enter_context(link)
                if answer == "greeted":
                    link.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        endpoint = endpoint_of(listener)
        assert is_greeted(endpoint, 10)
        thread.join(10)
    listener.close()
    assert not is_greeted(endpoint, 0.5)


def test_a_machine_that_refuses_is_asked_now_and_then(listener):
    """Such as a forwarded port without a listener: retries pause, and sockets don't pile up."""
    asked = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                asked.append(1)

    threading.Thread(target=serve, daemon=True).start()
    assert not is_greeted(endpoint_of(listener), 2)
    listener.shutdown(socket.SHUT_RDWR)  # ends accept(2)
    assert 2 <= len(asked) <= 8


@pytest.mark.parametrize(
    ("tools", "lacking"), [((), "qemu-system-x86_64"), ((emulator.PROGRAM,), "mmdebstrap")], ids=["qemu", "mmdebstrap"]
)
def test_what_emulation_needs_is_named(tools, lacking, cache, tmp_path, monkeypatch):
    for tool in tools:
        (tmp_path / tool).write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=f"{lacking}, which is not installed"):
        emulator.ensure()


# -- guest scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted((paths.LAB).glob("*/*.sh")), ids=lambda path: path.name)
def test_guest_scripts_parse(script):
    subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="as a user, mmdebstrap creates the namespaces itself")
def test_an_interrupted_build_leaves_no_process(tmp_path):
    """mmdebstrap acts on an interruption only when its package manager has finished; the namespace ends both."""
    line = [*mmdebstrap._CONTAINED, "sh", "-c", "trap '' TERM INT; echo 'I: begun'; sleep 471147; exit 1"]
    steps = mmdebstrap.followed(line, tmp_path / "log", tmp_path)
    assert "begun" in next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert subprocess.run(["pgrep", "-f", "^sleep 471147"], stdout=subprocess.DEVNULL).returncode == 1


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_terminated_is_interrupted(name):
    """The signal of `timeout` unwinds every verb, so that half-built boxes and machines are removed; so does Ctrl-C's,
    also where it was ignored.
    """
    script = "import time, lab.verbs as v, lab.__main__ as m; v.VERBS['list'] = lambda told: time.sleep(60); raise SystemExit(m.main())"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", script, "list"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_the_handlers(process.pid)
    process.send_signal(signal.Signals[f"SIG{name}"])
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert ("interrupted (SIGTERM)" if name == "TERM" else "interrupted;") in said


def wait_for_the_handlers(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        caught = int(Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0], 16)
        if caught & 1 << 14 and caught & 1 << 1:  # SIGTERM, SIGINT
            return
        time.sleep(0.05)
    raise AssertionError("SIGTERM or SIGINT is not caught")


def test_every_engine_has_every_verb():
    verbs_of_lib = (
        "engine_start",
        "engine_stop",
        "engine_log",
        "make_images",
        "container_start",
        "container_stop",
        "container_remove",
    )
    verbs_of_lib += ("container_pause", "container_unpause", "container_pid", "container_exec")
    for machine in table.load().machines.values():
        script = paths.LAB / "provision" / f"{machine.engine}.sh"
        text = script.read_text() + (script.parent / "lib.sh").read_text()
        for other in ("oci.sh", "podman.sh"):
            if f"/{other}" in text:
                text += (script.parent / other).read_text()
        for function in verbs_of_lib:
            assert f"{function}()" in text, f"{script.name} has no {function}"


# -- reports -------------------------------------------------------------------------------------------------------------


def test_the_page_tells_every_outcome_and_escapes():
    cells = [
        Cell("docker", "mount", "attach_by_name", "A name <is> enough", "test_attach.py", "pass", "", 1.0),
        Cell(
            "docker",
            "devfuse",
            "attach_by_name",
            "A name <is> enough",
            "test_attach.py",
            "fail",
            "expected: <b>\nseen: &",
            1.0,
            ["artefacts/x/f.txt"],
        ),
        Cell("docker", "mount", "other", "Other", "test_life.py", "expected", "kernel too old", 1.0),
        Cell("docker", "mount", "window", "A window", "test_x.py", "pass", "", 1.0, ["artefacts/<w>.png"]),
        Cell("docker", "mount", "gone", "Gone", "test_life.py", "lost", "LOST: machine", 1.0),
    ]
    peers = [
        {"machine": "docker", "question": "q", "tool": "nsenter", "answer": "fails", "said": "<no>", "seconds": "0.1"}
    ]
    page = html.page(Run("now", 3.0, {"kernel": "6"}, {"docker": {"kernel": "6.12"}}, cells, peers))
    for word in (
        "PASS",
        "FAIL",
        "XFAIL",
        "LOST",
        "A name &lt;is&gt; enough",
        "kernel too old",
        "artefacts/x/f.txt",
        "&lt;no&gt;",
        "<img src='artefacts/&lt;w&gt;.png'",
    ):
        assert word in page
    assert "<b>" not in page


def test_a_column_is_below_its_machine_although_machines_ran_at_once():
    order = [("b", "mount"), ("a", "mount"), ("b", "devfuse"), ("a", "devfuse"), ("a", "-"), ("b", "-")]
    cells = [Cell(machine, transport, "scenario", "", "test_x.py", "pass", "", 1.0) for machine, transport in order]
    page = html.page(Run("now", cells=cells))
    assert re.findall(r"<th class=column colspan=(\d)>(\w)</th>", page) == [("3", "b"), ("3", "a")]
    assert re.findall(r"<th class=column>([\w ]+)</th>", page) == ["mount", "devfuse", "no session"] * 2


def test_only_what_failed_is_run_again(tmp_path):
    told = SimpleNamespace(report=str(tmp_path), machines=["gate"], transports="", scenario="")
    with pytest.raises(LabError, match="no report"):
        verbs.select_failed(told)
    cells = [
        {"machine": machine, "transport": transport, "scenario": scenario, "outcome": outcome}
        for machine, transport, scenario, outcome in (
            ("docker", "mount", "paused", "pass"),
            ("docker", "mount", "exit_status_KILL", "fail"),
            ("nspawn", "-", "not_root", "unexpected"),
        )
    ]
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells[:1]}))
    with pytest.raises(LabError, match="nothing failed"):
        verbs.select_failed(told)
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells}))
    verbs.select_failed(told)
    assert (told.machines, told.transports) == (["docker", "nspawn"], "mount")
    assert told.scenario == "(exit and status and KILL) or (root)"
    assert told.report == str(tmp_path / "again")


def test_a_missing_suite_is_reported_before_any_machine_is_made(tmp_path):
    told = arguments().parse_args(["run", "docker", "--pjdfstest-dir", str(tmp_path)])
    with pytest.raises(LabError, match=r"holds no built pjdfstest: there is no pjdfstest in it"):
        verbs.run(told)
    with pytest.raises(LabError, match="--xfstests-tests selects tests"):
        verbs.run(arguments().parse_args(["run", "docker", "--xfstests-tests", "generic/001"]))
    (tmp_path / "pjdfstest").touch()
    assert verbs.installed_suites(told) == {"pjdfstest": tmp_path}


@pytest.mark.parametrize("several", [0, 2], ids=["one", "several"])
def test_rows_of_machines_at_once_do_not_mix(several, capsys):
    options = SimpleNamespace(getoption=lambda name: "reports", option=SimpleNamespace(numprocesses=several))
    collector = Collector(options)
    order = ["a b", "a b"] if several else ["a a", "b b"]
    for machine in " ".join(order).split():
        collector._show(Cell(machine, "mount", "scenario", "", "", "pass", "", 1.0))
    for machine in list(collector._rows):
        collector._end_row(machine)
    assert capsys.readouterr().out.strip().split("\n") == [
        f"{machine:16} mount    ..  2 pass, {seconds} s" for machine, seconds in (("a", 1), ("b", 1))
    ]


def test_a_machines_scenarios_go_to_one_process():
    """The scheduler only gets the tests' ids."""
    machines = list(table.load().machines)
    command = [sys.executable, "-m", "pytest", "scenarios", "-q", "--collect-only", "-p", "no:cacheprovider"]
    command += [f"--lab-machines={','.join(machines)}", "--lab-driver=qemu"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ids = [line for line in said.splitlines() if "::" in line]
    for name in machines:
        own = [line for line in ids if plugin.machine_of(line, machines) == name]
        assert len(own) == len(ids) / len(machines)
        assert all(f"[{name}-" in line or f"[{name}]" in line or f"-{name}-" in line for line in own)


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        ("'cntr-lab' == 'boxhost'", "expected: 'boxhost'\nseen:     'cntr-lab'"),
        ("'alive' in 'nobody'", "expected: something with 'alive'\nseen:     'nobody'"),
        ("'open:' not in 'open: exe'", "expected: nothing with 'open:'\nseen:     'open: exe'"),
        ("0 >= 1", "expected: >= 1\nseen:     0"),
    ],
)
def test_a_failed_comparison_says_what_was_expected_and_seen(comparison, said):
    left, op, right = re.fullmatch(r"(\S+|'.*?') (==|in|not in|>=) (.*)", comparison).groups()
    lines = plugin.pytest_assertrepr_compare(op, ast.literal_eval(left), ast.literal_eval(right))
    message = "AssertionError: assert " + "\n  ".join(lines)
    crash = SimpleNamespace(message=message, path="/x/scenarios/test_attach.py", lineno=7)
    assert report._brief(SimpleNamespace(reprcrash=crash)) == f"{said}\nat test_attach.py:7"


def test_an_expected_failure_needs_a_reason():
    from lab.plugin import matches, read_expected

    with pytest.raises(LabError, match="needs scenario and reason"):
        read_expected('[[expected]]\nscenario = "x"\n')
    row = read_expected('[[expected]]\nscenario = "x y"\ntransport = "devfuse"\nreason = "r"\n')[0]
    assert matches(row, "docker", "docker", "devfuse", "y")
    assert not matches(row, "docker", "docker", "mount", "y")
    assert not matches(row, "docker", "docker", "devfuse", "z")


def test_expected_toml_names_scenarios_that_exist():
    from lab.plugin import EXPECTED_FILE, read_expected

    names = set()
    for file in (ROOT / "scenarios").glob("test_*.py"):
        names |= {
            n.name.removeprefix("test_")
            for n in ast.walk(ast.parse(file.read_text()))
            if isinstance(n, ast.FunctionDef)
        }
    for row in read_expected(EXPECTED_FILE.read_text()):
        assert set(row["scenario"].split()) <= names


# -- rules ---------------------------------------------------------------------------------------------------------------


def test_only_one_module_calls_vagrant():
    callers = [
        path.name
        for path in (ROOT / "lab").rglob("*.py")
        if any(isinstance(n, ast.Constant) and n.value == "vagrant" for n in ast.walk(ast.parse(path.read_text())))
        and "subprocess" in path.read_text()
        and '["vagrant"' in path.read_text()
    ]
    assert callers == ["vagrant.py"]


def test_machines_and_scenarios_use_the_installed_command_only():
    # The README's demo and its proof need no machine.
    for path in [*(ROOT / "lab").rglob("*.py"), *(ROOT / "scenarios").rglob("*.py")]:
        if path.name in ("slim.py", "demo.py", "cleanroom.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            assert not [name for name in names if name.split(".")[0] == "cntr"], path


def test_a_missing_tool_is_reported_with_its_fix(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError) as failure:
        host.require("qemu")
    assert "qemu-system-x86" in failure.value.message
    assert "apt-get install" in failure.value.hint
    checks = {check.what: check for check in host.checks()}
    assert not checks["qemu-img"].ok
    assert "qemu-utils" in checks["qemu-img"].fix


def test_free_ports_differ_while_they_are_taken():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert free_port() != taken.getsockname()[1]


def test_clean_leaves_a_run_in_progress_alone(cache):
    from lab import cleaning
    from lab.drivers.base import start_time

    ours = start_time(os.getpid())
    for name, pid, started in (
        ("alive-1", os.getpid(), ours),
        ("dead-1", 999999999, 5),
        ("reused-1", os.getpid(), ours - 1),
    ):
        run = cache / "runs" / name
        run.mkdir(parents=True)
        note = {"machine": "docker", "driver": "qemu", "pid": pid, "started": started, "keep": False, "box": ""}
        (run / "state.json").write_text(json.dumps(note))
    kept = cache / "runs" / "kept-1"
    kept.mkdir()
    (kept / "state.json").write_text(json.dumps(note | {"pid": 999999999, "keep": True}))
    list(cleaning.clean(kept=False))
    assert sorted(path.name for path in (cache / "runs").iterdir()) == ["alive-1", "kept-1"]
    said = "\n".join(cleaning.clean())
    assert "alive-1 belongs to a run in progress" in said
    assert sorted(path.name for path in (cache / "runs").iterdir()) == ["alive-1"]


def test_the_labs_libvirtd_is_not_the_hosts():
    assert libvirtd.uri("qemu+ssh://elsewhere/system") == "qemu+ssh://elsewhere/system"
    assert str(libvirtd.place()) not in ("/run/libvirt", "/var/run/libvirt")
    for place in ("etc/libvirt", "var/lib/libvirt", "run/libvirt"):
        assert place in libvirtd.SCRIPT


@pytest.mark.skipif(os.geteuid() != 0, reason="the lab's own libvirtd is root's")
def test_a_libvirtd_that_keeps_running_is_no_warning(tmp_path, monkeypatch):
    """Warnings are errors here, as in scenarios: one raised during garbage collection fails whatever test runs then."""
    monkeypatch.setenv("CNTR_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(libvirtd, "place", lambda: tmp_path / "libvirt")
    stand_in = """exec python3 -c 'import time; time.sleep(60)' "$1" """
    script = f'echo $$ >"$1/libvirtd.pid"; : >"$1/run/libvirt/libvirt-sock"; {stand_in}'
    monkeypatch.setattr(libvirtd, "SCRIPT", script)
    monkeypatch.setattr(libvirtd, "_answers", lambda socket: True)
    monkeypatch.setattr(libvirtd.shutil, "which", lambda tool: tool)
    libvirtd.ensure()
    gc.collect()
    assert libvirtd.running()
    assert libvirtd.stop()
    assert not libvirtd._started


def test_a_terminal_on_this_host():
    from lab.local import open_terminal

    screen = open_terminal(["sh"], 91, 17, 1.0)
    try:
        screen.type("stty size; echo rea''dy\r")
        assert "17 91" in screen.expect(r"17 91[\s\S]*ready")
        screen.type(f"sleep 60.{os.getpid()}\r")
        wait_until(lambda: running("sleep", f"60.{os.getpid()}"), "the command runs")
        screen.type("\x03")
        screen.type("exit 5\r")
        assert screen.wait_closed() == 5
    finally:
        screen.close()


def test_what_fails_beside_a_terminal_says_what_it_showed():
    machine = Machine(table.load().machine("docker"), None, LocalCarrier({"root": []}))
    showing = machine.terminal("echo 'cntr: the engine is gone'; exec sleep 62.31")
    with pytest.raises(CommandFailed, match=r"(?s)from `false`.*terminal: .*engine is gone"), showing:
        machine.succeed("false")
    with machine.terminal("exit 3") as screen:
        assert screen.wait_closed() == 3


def test_the_command_line_helps_and_refuses():
    run = [sys.executable, "-m", "lab"]
    helped = subprocess.run([*run, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for verb in verbs.VERBS:
        if verb != "vagrant-environment":
            assert verb in helped.stdout
    refused = subprocess.run(
        [*run, "dokcer"], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert refused.returncode == 2
    assert "no machine is called 'dokcer'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_document_says_what_is_in_which_machine():
    text = (paths.REPOSITORY / "docs/lab.md").read_text()
    for machine in table.load().machines.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{machine.name}` |"))
        _, _, tier, kernel, containers, _ = (cell.strip() for cell in row.split("|"))
        assert (tier, containers) == (machine.tier, ", ".join(machine.containers))
        assert table.load().boxes[machine.box].about.startswith("Debian " + ", kernel ".join(kernel.split(", ")[:2]))
