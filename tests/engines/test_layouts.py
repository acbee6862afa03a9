"""Engines that can't run here: state files that the test writes for the process of a real container, and refusals.

The layouts are from each engine's documentation or source; see docs/engines.md.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from cntr import engines
from cntr.engines import asking, docker, kubernetes, nspawn, podman, registry, store
from cntr.errors import CntrError, TargetNotFound
from cntr.linux import procfs

ID = "4f" * 32


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Ask no engine of this machine; only look at the layout below tmp_path."""
    for name in list(os.environ):
        if name.startswith(("DOCKER_", "CONTAINERS_", "CNTR_", "LXD_", "INCUS_", "APPTAINER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: pathlib.Path, text: object) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def started(pid: int) -> int:
    return procfs.start_time(procfs.read(f"/proc/{pid}/stat"))


@pytest.fixture
def monitored():
    """The pid of a process whose parent has ID among its arguments, like an engine's monitor."""
    code = "import subprocess,sys; p = subprocess.Popen(['sleep', '300']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code, "-c", ID], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        yield pid
        os.kill(pid, 9)
        process.wait(timeout=10)


# --- layout tests -----------------------------------------------------------------------------------------------------


def test_sysbox(alone, monkeypatch, runc):
    with runc.container("userns") as container:
        state = {
            "id": container.name,
            "init_process_pid": container.pid,
            "init_process_start": started(container.pid),
            "config": {},
        }
        write(alone / "sysbox" / container.name / "state.json", state)
        monkeypatch.setenv("CNTR_SYSBOX_ROOT", str(alone / "sysbox"))
        found = engines.resolve(f"sysbox:{container.name}")
        assert (found.engine, found.pid, found.start_time) == ("sysbox", container.pid, started(container.pid))
    with pytest.raises(TargetNotFound):
        engines.resolve(f"sysbox:{container.name}")


def test_crun_of_a_root_that_logged_in(alone, crun):
    """crun uses XDG_RUNTIME_DIR, which a login also sets for root."""
    with crun.container("busybox") as container:
        status = pathlib.Path(crun.workspace.path, "state", container.name, "status").read_text()
        place = pathlib.Path("/run/user/0/crun", container.name)
        made = [path for path in (place, *place.parents) if not path.exists()]
        try:
            write(place / "status", status)
            assert engines.resolve(f"crun:{container.name}").pid == container.pid
        finally:
            (place / "status").unlink(missing_ok=True)
            for path in made:
                path.rmdir()


@pytest.mark.parametrize("file", ["pid", "ppid"])
def test_rkt(alone, monkeypatch, file):
    """A stage1 whose init has a child chrooted at /opt/stage2/APP/rootfs."""
    uuid, app = "5ad9ac9c-a2d4-4a06-9b8f-8a7b7f3c1e11", "redis"
    rootfs = alone / "stage1/opt/stage2" / app / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    busybox = rootfs / "bin/sleep"
    busybox.write_bytes(pathlib.Path("/usr/bin/busybox").read_bytes())
    busybox.chmod(0o755)
    code = (
        "import os, sys, time\nif os.fork() == 0:\n os.chroot(sys.argv[1]); os.chdir('/')\n"
        " os.execv('/bin/sleep', ['sleep', '300'])\nprint('up', flush=True); time.sleep(300)"
    )
    init = f"import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}, sys.argv[1]])"
    command = [sys.executable, "-c", code if file == "pid" else init, str(rootfs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            write(alone / "rkt/pods/run" / uuid / file, f"{process.pid}\n")
            monkeypatch.setenv("CNTR_RKT_ROOT", str(alone / "rkt"))
            deadline = time.monotonic() + 10
            while not (found := asking.ask(_entries("rkt"), uuid[:8], deadline)[0].containers):
                assert time.monotonic() < deadline
            assert [container.name for container in found] == [f"{uuid}/{app}"]
            assert os.readlink(f"/proc/{found[0].pid}/root") == str(rootfs), "the app, not stage1's init"
            for name in (uuid, f"{uuid}/{app}", app, f"{uuid[:8]}/{app}"):
                assert engines.resolve(f"rkt:{name}").pid == found[0].pid
        finally:
            os.killpg(process.pid, 9)


def _entries(*names: str) -> list[registry.Entry]:
    return [entry for entry in registry.REGISTRY if entry.name in names]


def storage(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, names: list[str], pid: int) -> None:
    """Make a containers/storage with one container."""
    conf = f'[storage]\n# a comment\ndriver = "overlay"\nrunroot = "{directory}/run"\ngraphroot = "{directory}/graph" # here\n'
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(write(directory / "storage.conf", conf)))
    row = {"id": ID, "names": names, "layer": "ab" * 32, "metadata": json.dumps({"image-name": "quay.io/x/y:1"})}
    write(directory / "graph/overlay-containers/containers.json", [row])
    write(directory / "run/overlay-containers" / ID / "userdata/pidfile", f"{pid}\n")


def test_crio(alone, monkeypatch, monitored):
    storage(alone, monkeypatch, ["k8s_app_web-5d8f7c-x2x4v_prod_8f0b_0"], monitored)
    for name in (
        *("k8s:prod/web-5d8f7c-x2x4v/app", "k8s:web-5d8f7c-x2x4v", "k8s:web-", "k8s:prod/web", "k8s:web/app"),
        *(f"crio:{ID[:12]}", f"k8s:{ID}"),
    ):
        found = engines.resolve(name)
        assert (found.engine, found.name, found.pid) == ("k8s", "prod/web-5d8f7c-x2x4v/app", monitored), name
        assert found.image == "quay.io/x/y:1"
    for name in ("k8s:test/web", "k8s:web/sidecar", "k8s:eb", "k8s:/", "k8s:prod/", "k8s:prod/web/app/x"):
        with pytest.raises(TargetNotFound):
            engines.resolve(name)
    assert podman.find("k8s_app_web-5d8f7c-x2x4v_prod_8f0b_0", 0) == [], "CRI-O's container is not Podman's"


def test_crios_sandboxes_are_left_out(alone, monkeypatch, monitored):
    storage(alone, monkeypatch, ["k8s_POD_web-5d8f7c-x2x4v_prod_8f0b_0"], monitored)
    assert kubernetes.containers(0) == []


def test_podmans_transient_store(alone, monkeypatch, monitored):
    storage(alone, monkeypatch, ["web"], monitored)
    index = alone / "graph/overlay-containers/containers.json"
    index.rename(alone / "run/overlay-containers/volatile-containers.json")
    assert engines.resolve("podman:web").pid == monitored


def test_nerdctl_names(alone, monkeypatch, monitored):
    task = alone / "state/io.containerd.runtime.v2.task/default" / ID
    write(task / "init.pid", str(monitored))
    write(alone / "nerdctl/1935db59/names/default/web", ID)
    monkeypatch.setenv("CNTR_CONTAINERD_ROOT", str(alone / "state"))
    monkeypatch.setenv("CNTR_NERDCTL_ROOT", str(alone / "nerdctl"))
    for name in ("nerdctl:web", "containerd:default/web", f"containerd:default/{ID}", f"ctr:{ID[:10]}"):
        assert engines.resolve(name).pid == monitored
    answer = asking.ask(_entries("containerd"), None, time.monotonic() + 5)[0]
    assert [container.name for container in answer.containers] == ["web"]


def test_nspawn_registered(alone, monkeypatch, monitored):
    monkeypatch.setattr(nspawn, "MACHINES", str(alone))
    text = "# This is private data. Do not parse.\nNAME=web\nSERVICE=systemd-nspawn\nCLASS={}\nLEADER={}\n"
    write(alone / "web", text.format("container", monitored))
    write(alone / "guest", text.format("vm", monitored))
    (alone / "unit:web.scope").symlink_to("web")
    assert [found.name for found in nspawn.find("web", 0)] == ["web"]
    assert nspawn.find("web", 0)[0].pid == monitored
    assert nspawn.find("unit:web.scope", 0) == nspawn.find("../web", 0) == []
    # Including this host's, which other tests start.
    states = {found.name: found.state for found in nspawn.containers(0)}
    assert (states["web"], states["guest"], "unit:web.scope" in states) == ("running", "sandboxed", False)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["systemd-nspawn", "-M", "web", "-D", "/srv/x"], "web"),
        (["systemd-nspawn", "--machine=web", "--boot"], "web"),
        (["systemd-nspawn", "-D", "/srv/deb/", "/bin/sh"], "deb"),
        (["systemd-nspawn", "-bD/srv/deb"], "deb"),
        (["systemd-nspawn", "-qbD", "/srv/deb", "-M", "web"], "web"),
        (["systemd-nspawn", "--image", "/srv/disk.raw"], "disk"),
    ],
)
def test_nspawns_command_lines(arguments, name):
    assert nspawn.machine_name(os.getpid(), arguments)[0] == name


# --- refused ----------------------------------------------------------------------------------------------------------


def refusal(target: str) -> CntrError:
    with pytest.raises(CntrError) as caught:
        engines.verify(engines.resolve(target))
    assert "not on this host" in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("program", "options", "target", "hint"),
    [
        ("firecracker", ["--id", "vm-{0}", "--api-sock", "/tmp/x"], "firecracker:vm-{0}", "inside the guest"),
        ("containerd-shim-kata-v2", ["-namespace", "k8s.io", "-id", "vm-{0}"], "kata:vm-{0}", "inside the guest"),
        ("qemu-system-x86_64", ["-name", "guest=vm-{0},debug-threads=on"], "qemu:vm-{0}", "inside the guest"),
    ],
)
def test_virtual_machines(tmp_path, program, options, target, hint):
    """A process with a VMM's arguments, which is all that a host knows about the workload."""
    key = tmp_path.name[-12:].replace("_", "")
    arguments = [option.format(key) for option in options]
    with subprocess.Popen([program, "300", *arguments], executable=_sleeper(tmp_path)) as process:
        # execve(2) closes Popen's pipe a moment before the new arguments are visible.
        while not pathlib.Path(f"/proc/{process.pid}/cmdline").read_text().startswith(program):
            time.sleep(0.001)
        try:
            error = refusal(target.format(key))
            assert hint in error.hint
            assert refusal(f"vm-{key}").message == error.message, "without the prefix, too"
        finally:
            process.kill()


def _sleeper(tmp_path: pathlib.Path) -> str:
    """A program that waits, whatever its name and arguments."""
    from testkit.elf import static_program

    path = tmp_path / "sleeper"
    path.write_bytes(static_program())
    path.chmod(0o755)
    return str(path)


def test_katas_containers_under_containerd(alone, monkeypatch):
    """Kata's shim writes no init.pid."""
    task = alone / "state/io.containerd.runtime.v2.task/default" / ID
    write(task / "shim-binary-path", "/opt/kata/bin/containerd-shim-kata-v2")
    monkeypatch.setenv("CNTR_CONTAINERD_ROOT", str(alone / "state"))
    assert "guest" in refusal(f"containerd:{ID}").hint


@pytest.mark.parametrize("kind", ["lxd", "incus"])
def test_virtual_machines_of_lxd_and_incus(alone, monkeypatch, kind):
    (alone / "virtual-machines/desktop").mkdir(parents=True)
    (alone / "containers/idle").mkdir(parents=True)
    monkeypatch.setenv(f"{kind.upper()}_DIR", str(alone))
    assert "inside the guest" in refusal(f"{kind}:desktop").hint
    with pytest.raises(TargetNotFound, match=f"{kind} has idle, but it is not running"):
        engines.resolve(f"{kind}:idle")


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2376", "ssh://root@host", "http://host"])
def test_a_remote_docker_is_refused(alone, monkeypatch, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(TargetNotFound, match="another machine") as caught:
        engines.resolve("docker:web")
    assert host in caught.value.message


def test_a_remote_context_is_refused_and_a_missing_one_named(alone):
    name = "8184b2ae2e3bb7c2cc2b2d6b1ebd9c2e3ac2f0ba0e1f2aa7c4c6d0c0be7ac5b5"  # not the hash, as the context does not exist
    write(alone / ".docker/config.json", {"currentContext": "prod"})
    with pytest.raises(engines.Refused, match="'prod' does not exist"):
        docker.endpoints()
    import hashlib

    digest = hashlib.sha256(b"prod").hexdigest()
    assert digest != name
    meta = {"Name": "prod", "Endpoints": {"docker": {"Host": "ssh://prod"}}}
    write(alone / f".docker/contexts/meta/{digest}/meta.json", meta)
    with pytest.raises(engines.Refused, match="ssh://prod"):
        docker.endpoints()
    meta["Endpoints"]["docker"]["Host"] = f"unix://{alone}/d.sock"
    write(alone / f".docker/contexts/meta/{digest}/meta.json", meta)
    assert docker.endpoints() == [(f"{alone}/d.sock", 0)]


def test_a_socket_from_another_pid_namespace_is_refused(alone, monkeypatch):
    """Docker in Docker, or a VM's socket: its pids are not this machine's."""
    code = (
        "import socket, sys, time\ns = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print('up', flush=True); time.sleep(300)"
    )
    command = ["unshare", "-pf", "--kill-child", sys.executable, "-c", code, f"{alone}/d.sock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            monkeypatch.setenv("DOCKER_HOST", f"unix://{alone}/d.sock")
            with pytest.raises(TargetNotFound, match="another pid namespace"):
                engines.resolve("docker:web")
        finally:
            process.kill()


def test_state_files_are_read_as_hostile(alone):
    """A user's state directory may contain anything."""
    os.mkfifo(alone / "fifo")
    (alone / "link").symlink_to("/dev/zero")
    for name in ("fifo", "link", "nothing"):
        with pytest.raises(OSError, match=r"regular|No such file"):
            store.read(str(alone / name))
    big = write(alone / "big", "x" * 100)
    with pytest.raises(OSError, match="larger"):
        store.read(str(big), limit=10)
    os.chown(big, 4242, 4242)
    with pytest.raises(OSError, match="not owned by uid 4243"):
        store.read(str(big), owner=4243)
    assert store.read(str(big), owner=4242) == "x" * 100


NO_JSON = ["", "{", "[1,]", "nul", "{} x", "[" * 100000, '{"a": }', "\x00", '{"a"=1}', "[1", '"abc', '"\\q"', '"\1"']


@pytest.mark.parametrize("text", NO_JSON)
def test_what_is_not_json_is_an_error_and_no_crash(text):
    with pytest.raises(ValueError, match=r".*"):
        store.parse(text)


def test_nor_where_nobody_has_imported_json():
    """As in a real cntr, where the scanner can't create json's error."""
    script = """
import sys
from cntr.engines import store
for text in eval(sys.stdin.read()):
    for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
        del sys.modules[name]  # from 3.15 on the scanner imports json.decoder for its error
    try:
        store.parse(text)
    except ValueError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], input=repr(NO_JSON), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["refused"] * len(NO_JSON), "")


def test_json_is_read_as_json_reads_it():
    for value in (None, True, [1, -2.5, 1e300, 'é\n"\\', {"a": {"b": []}}], {}, "x", 12345678901234567890):
        for text in (
            json.dumps(value),
            json.dumps(value, indent=2) + "\n",
            f"  {json.dumps(value, ensure_ascii=False)} ",
        ):
            assert store.parse(text) == json.loads(text)
