"""Users' stopped containers, for root and for the user; a user's store can claim nothing beyond the user's rights."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import types

import pytest

from cntr.engines import Refused, evidence
from cntr.errors import AmbiguousTarget, CntrError
from cntr.images import one_writer, standin, targets
from cntr.linux import procfs, syscalls
from testkit.engines import newer, workspaces
from testkit.engines.rig import EngineContainer, Rig
from testkit.engines.rigs_cli import PodmanRootless
from testkit.engines.rigs_others import DockerRootless
from testkit.waiting import wait_until
from tests.attacks import stalling

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
UID = 29_994


class Native(PodmanRootless):
    """With the kernel's overlayfs, mounted by the user."""

    driver = "overlay"
    roots = True  # whether root can read its layers

    def prefix(self) -> tuple[str, ...]:
        """The words that run a command in the view in which the user exists."""
        return ()

    def options(self) -> str:
        """Additional lines of the store's configuration."""
        return ""

    def images(self) -> None:
        """Write the store's configuration, which $CONTAINERS_STORAGE_CONF names for root."""
        home = f"{self.workspace.path}/home-slim"
        self.conf = pathlib.Path(home, ".config/containers/storage.conf")
        self.conf.parent.mkdir(parents=True)
        graph = f"{home}/.local/share/containers/storage"
        self.conf.write_text(
            f'[storage]\ndriver = "{self.driver}"\ngraphroot = "{graph}"\nrunroot = "{self.workspace.path}/runtime/containers"\n'
            + self.options()
        )
        self.cli = (*self.prefix(), *self.cli)
        for path in (self.conf, self.conf.parent, self.conf.parent.parent):
            os.chown(path, self.uid, self.uid)
        super().images()

    def cntr(self, *arguments: str, as_user: bool, status: int = 0) -> str:
        """The output of cntr, run by root or by the user, in the view in which the user exists."""
        done = self.session(*arguments, as_user=as_user)
        out, errors = done.communicate(timeout=100)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{out}\n{errors}"
        return out

    def session(self, *arguments: str, as_user: bool = False) -> subprocess.Popen[str]:
        """cntr, started."""
        view = self.cli[: self.cli.index("podman" if as_user else "setpriv")]
        env = (
            self.workspace.env
            if as_user
            else {**os.environ, "CNTR_RIG": self.workspace.mark, "CONTAINERS_STORAGE_CONF": str(self.conf)}
        )
        return subprocess.Popen(
            [*view, sys.executable, "-m", "cntr", *arguments],
            env={**env, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""},
            **{
                "cwd": "/",
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "stdin": subprocess.DEVNULL,
                "text": True,
            },
        )


class Served(Native):
    """With fuse-overlayfs from Debian 13."""

    roots = False

    def prefix(self) -> tuple[str, ...]:
        """A view in which it is installed and everybody can open /dev/fuse."""
        root, machine = newer.root("trixie"), os.uname().machine
        loader = next(pathlib.Path(root).glob("usr/lib64/ld-linux-*"))
        program, device = pathlib.Path(self.workspace.path, "fuse-overlayfs"), pathlib.Path(self.workspace.path, "fuse")
        library = f"{root}/usr/lib/{machine}-linux-gnu"
        program.write_text(f'#!/bin/sh\nexec {loader} --library-path {library} {root}/usr/bin/fuse-overlayfs "$@"\n')
        program.chmod(0o755)
        os.mknod(device, 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        device.chmod(0o666)  # udev's mode
        place = "/usr/local/sbin"
        script = f'mount -t tmpfs -o mode=755 none {place} && cp {program} {place} && mount --bind {device} /dev/fuse && exec "$@"'
        return ("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh")

    def options(self) -> str:
        return '[storage.options.overlay]\nmount_program = "/usr/local/sbin/fuse-overlayfs"\n'


class Copies(Native):
    """With a full copy of the files for each container."""

    driver = "vfs"


@pytest.fixture(params=[Native, Copies, Served])
def rig(request):
    started = request.param()
    yield started
    started.stop()


def test_a_users_stopped_and_created_containers(rig):
    container = rig.container("busybox")
    os.kill(container.pid, 9)
    status = ("inspect", "--format", "{{.State.Status}}", container.name)
    rig.workspace.wait_for("the end", lambda: rig.command(*status).strip() == "exited")
    made = workspaces.unique("made")
    rig.command(
        *(
            "create",
            "--name",
            made,
            "--network",
            "none",
            *workspaces.ULIMITS,
            "--env",
            "MODE=prod",
            "--user",
            "1000",
            "slim:1",
        ),
        *("/bin/sh", "-c", "echo $MODE $(id -u); exit 3"),
    )
    before = rig.command("diff", container.name)
    script = (
        "cat /etc/motto; echo x > /new; busybox chown 1000 /new; busybox stat -c %u /new; id -u; cat /proc/self/uid_map"
    )
    callers = (False, True) if rig.roots else (True,)
    for as_user in callers:
        out = rig.cntr("exec", container.target, "--", "/bin/sh", "-c", script, as_user=as_user)
        assert out.split() == ["slim", "1000", "0", "0", str(rig.uid), "1", "1", "300000", "65536"]
        script_outside = "cat /var/lib/cntr/etc/motto; echo x > /var/lib/cntr/etc/motto; cat /var/lib/cntr/etc/motto"
        assert rig.cntr("attach", container.target, "--", "sh", "-c", script_outside, as_user=as_user).split() == [
            "slim",
            "x",
        ]
        assert rig.cntr("run", made, as_user=as_user, status=3).split() == ["prod", "1000"]
        states = {row["name"]: row["state"] for row in json.loads(rig.cntr("ps", "--all", "--json", as_user=as_user))}
        assert (states[container.name], states[made]) == ("exited", "created")
    assert rig.command("diff", container.name) == before
    for as_user in callers:
        name = f"/etc/fixed-{as_user}"
        rig.cntr("exec", "--write", container.target, "--", "/bin/sh", "-c", f"echo x > {name}", as_user=as_user)
        assert f"A {name}" in rig.command("diff", container.name)
    if not rig.roots:
        rig.cntr("exec", container.target, "--", "/bin/sh", as_user=False, status=125)
        rig.workspace.wait_for(
            "the end of the servers", lambda: not evidence.processes_named("fuse-overlayfs", "ld-linux-x86-64")
        )
    session = (
        rig.session("exec", "--write", container.target, "--", "/bin/sh", "-c", "echo in; sleep 60")
        if rig.roots
        else None
    )
    if session:  # root's, until the user starts it
        assert session.stdout.readline() == "in\n"
        if rig.driver == "overlay":
            rig.cntr("exec", "--write", container.target, "--", "/bin/true", as_user=True, status=125)
    rig.command("start", container.name)
    if session:
        with session:
            assert "was started: the session with --write ends" in session.stderr.read()
    container.pid = int(rig.command("inspect", "--format", "{{.State.Pid}}", container.name))
    assert rig.command("exec", container.name, "cat", "/etc/fixed-True") == "x\n"


def test_rootless_dockers_stopped_and_created_containers():
    """By its API, for the user and for root, who is told whose it is."""
    rig = DockerRootless()
    try:
        container, made = rig.container("busybox"), workspaces.unique("made")
        words = ("create", "--name", made, "--network", "none", "--env", "MODE=prod", "--user", "1000", "slim:1")
        rig.command(*words, "/bin/sh", "-c", "echo $MODE $(id -u); exit 3")
        rig.command("kill", container.name)
        view = workspaces.users_view(rig.workspace.path, [("slim", rig.uid)])
        become = ("setpriv", f"--reuid={rig.uid}", f"--regid={rig.uid}", "--clear-groups", "--inh-caps=-all")
        own = {"HOME": f"{rig.workspace.path}/home-slim", "XDG_RUNTIME_DIR": f"{rig.workspace.path}/runtime"}

        def cntr(*words: str, as_user: bool, status: int = 0) -> str:
            more = {"CNTR_RIG": rig.workspace.mark, "DOCKER_HOST": f"unix://{rig.socket}", **(own if as_user else {})}
            done = subprocess.run(
                [*view, *(become if as_user else ()), sys.executable, "-m", "cntr", *words],
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "", **more},
                **{"cwd": "/", "capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 100},
            )
            assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        for as_user in (False, True):
            script = "cat /etc/motto; echo x > /new; id -u; cat /proc/self/uid_map"
            out = cntr("exec", container.target, "--", "/bin/sh", "-c", script, as_user=as_user)
            assert out.split() == ["slim", "0", "0", str(rig.uid), "1", "1", "300000", "65536"]
            out = cntr("attach", container.target, "--", "cat", "/var/lib/cntr/etc/motto", as_user=as_user)
            assert out == "slim\n"
            assert cntr("run", made, as_user=as_user, status=3).split() == ["prod", "1000"]
            states = {row["name"]: row["state"] for row in json.loads(cntr("ps", "--all", "--json", as_user=as_user))}
            assert (states[container.name], states[made]) == ("exited", "created")
            assert "/new" not in rig.command("diff", container.name)
            fixed = f"/etc/fixed-{as_user}"
            cntr("exec", "--write", container.target, "--", "/bin/sh", "-c", f"echo x > {fixed}", as_user=as_user)
            assert f"A {fixed}" in rig.command("diff", container.name)
        rig.command("start", container.name)
        assert rig.command("exec", container.name, "cat", "/etc/fixed-True", "/etc/fixed-False") == "x\nx\n"
    finally:
        rig.stop()


class UsersLxc(Rig):
    """An ordinary user's LXC containers, in which the user's own uid is not mapped."""

    engine = "lxc"
    needs = {"lxc-start": "lxc", "newuidmap": "uidmap", "busybox": "busybox-static"}  # noqa: RUF012
    variants: tuple[str, ...] = ("busybox",)
    uid = 29993

    def start(self) -> None:
        """Make a home, a runtime directory, and the view in which the user exists."""
        self.home, self.run = f"{self.workspace.path}/home-slim", f"{self.workspace.path}/runtime"
        self.containers = f"{self.home}/.local/share/lxc"
        os.makedirs(self.containers)
        os.mkdir(self.run)
        places = (self.home, self.run, f"{self.home}/.local", f"{self.home}/.local/share", self.containers)
        for path in places:
            os.chown(path, self.uid, self.uid)
            os.chmod(path, 0o711)
        self.view = workspaces.users_view(self.workspace.path, [("slim", self.uid)])

    def make(self, variant: str, name: str) -> EngineContainer:
        """Make a container as lxc-create does, without starting it."""
        root = workspaces.busybox_root(f"{self.containers}/{name}/rootfs")
        os.makedirs(f"{root}/dev", exist_ok=True)
        workspaces.run(["chown", "-hR", "300000:300000", root])
        (pathlib.Path(root).parent / "config").write_text(
            f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:{root}\nlxc.net.0.type = empty\nlxc.mount.auto = proc:mixed sys:mixed\n"
            "lxc.init.cmd = /bin/sleep 100000\nlxc.idmap = u 0 300000 65536\nlxc.idmap = g 0 300000 65536\nlxc.cap.drop = sys_ptrace\n"
        )
        for path in (f"{root}/..", f"{root}/../config"):
            os.chown(path, self.uid, self.uid)
        return EngineContainer(self, name, 0, rootfs=root)

    def go(self, *words: str, as_user: bool = True, status: int = 0) -> str:
        """The output of a command."""
        become = ("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=-all")
        more = {"HOME": self.home, "XDG_RUNTIME_DIR": self.run} if as_user else {"CNTR_LXC_ROOT": self.containers}
        done = subprocess.run(
            [*self.view, *(become if as_user else ()), *words],
            env={**self.workspace.env, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "", **more},
            **{"cwd": "/", "capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 100},
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def cntr(self, *words: str, as_user: bool = True, status: int = 0) -> str:
        """The output of cntr."""
        return self.go(sys.executable, "-m", "cntr", *words, as_user=as_user, status=status)

    def remove(self, container: EngineContainer) -> None:
        """Stop it, if it runs."""
        self.go("sh", "-c", f"lxc-stop -k -n {container.name} || true")


def test_a_users_lxc_container_stopped_and_running(other_users):
    rig = UsersLxc()
    try:
        container = rig.container("busybox")
        script = "cat /etc/motto; busybox stat -c %u /etc/motto; echo x > /new; id -u; cat /proc/self/uid_map"
        for as_user in (True, False):
            listed = json.loads(rig.cntr("ps", "--all", "--json", as_user=as_user))
            assert [(row["state"], row["owner"]) for row in listed if row["name"] == container.name] == [
                ("stopped", "slim")
            ]
            out = rig.cntr("exec", f"lxc:{container.name}", "--", "/bin/sh", "-c", script, as_user=as_user)
            assert out.split() == ["slim", "0", "0", "0", "300000", "65536"]
            out = rig.cntr(
                "attach", container.name, "--", "sh", "-c", "touch /tmp/x; cat /var/lib/cntr/etc/motto", as_user=as_user
            )
            assert out == "slim\n"
            assert not os.path.exists(f"{container.rootfs}/new")
            words = ("exec", "--write", container.name, "--", "/bin/sh", "-c", f"echo x > /etc/fixed-{as_user}")
            rig.cntr(*words, as_user=as_user)
            assert os.stat(f"{container.rootfs}/etc/fixed-{as_user}").st_uid == 300000
        rig.go("lxc-start", "-n", container.name, "-d")
        container.pid = int(rig.go("lxc-info", "-n", container.name, "-pH"))
        for as_user in (True, False):
            words = (
                "attach",
                f"lxc:{container.name}",
                "--",
                "sh",
                "-c",
                "id -u; touch /tmp/x; cat /var/lib/cntr/etc/fixed-True",
            )
            assert rig.cntr(*words, as_user=as_user) == "0\nx\n"
            assert (
                rig.cntr(
                    "exec", container.name, "--", "/bin/sh", "-c", "id -u; ls /etc/fixed*", as_user=as_user
                ).split()[0]
                == "0"
            )
        config = pathlib.Path(container.rootfs).parent / "config"
        rig.go("lxc-stop", "-k", "-n", container.name)
        config.write_text(config.read_text().replace(" 300000 ", " 100 "))  # other users' ids, which newuidmap refuses
        for as_user in (True, False):
            rig.cntr("exec", f"lxc:{container.name}", "--", "/bin/sh", as_user=as_user, status=125)
    finally:
        rig.stop()


def test_a_users_own_archive_and_directory():
    """As targets and as tools, without root, with the user's ids."""
    rig = Native()
    try:
        rig.command("save", "-q", "-o", f"{rig.workspace.path}/tmp/saved.tar", "slim:1")
        root = f"{rig.workspace.path}/home-slim/root"
        shutil.copytree(f"{rig.workspace.path}/image-slim", root, symlinks=True)
        workspaces.run(["chown", "-hR", f"{rig.uid}:{rig.uid}", root])
        for target in (f"dir:{root}", f"archive:{rig.workspace.path}/tmp/saved.tar"):
            script = "cat /etc/motto; echo x > /etc/motto; busybox stat -c %u /etc/motto /bin/busybox; cat /proc/self/uid_map"
            out = rig.cntr("exec", target, "--", "/bin/sh", "-c", script, as_user=True).split()
            assert out == ["slim", "0", "0", "0", str(rig.uid), "1", "1", "300000", "65536"], target
            command = (
                "attach",
                target,
                "--tools",
                target,
                "--",
                "/bin/sh",
                "-c",
                "cat /etc/motto /var/lib/cntr/etc/motto",
            )
            assert rig.cntr(*command, as_user=True).split() == ["slim", "slim"]
        assert pathlib.Path(root, "etc/motto").read_text() == "slim\n"
        assert os.stat(f"{rig.workspace.path}/home-slim/.cache/cntr").st_uid == rig.uid
    finally:
        rig.stop()


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """(directory, configuration, layers.json, name) of a store made by a user, with one layer that has busybox."""
    top = pathlib.Path(workspaces.tempfile.mkdtemp(prefix=f"{workspaces.PREFIX}store-", dir="/tmp"))
    top.chmod(0o755)
    id, layer, lower = ("a" * 64, "b" * 64, "c" * 64)
    graph = top / "graph"
    for directory in (
        f"overlay-containers/{id}/userdata",
        "overlay-layers",
        f"overlay/{layer}/diff/bin",
        f"overlay/{layer}/work",
    ):
        (graph / directory).mkdir(parents=True)
    (graph / f"overlay/{lower}").mkdir()
    shutil.copy(
        shutil.which("busybox") or pytest.skip("not installed: busybox-static"),
        graph / f"overlay/{layer}/diff/bin/busybox",
    )
    rows = [{"id": lower}, {"id": layer, "parent": lower}]
    (graph / "overlay-layers/layers.json").write_text(json.dumps(rows))
    (graph / "overlay-containers/containers.json").write_text(
        json.dumps([{"id": id, "names": ["mine"], "layer": layer}])
    )
    (top / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{graph}"\nrunroot = "{top}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(top / "storage.conf"))
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "open").write_text("root's\n")
    secret.chmod(0o700)

    def own() -> None:
        for parent, directories, files in os.walk(graph):
            for name in [*directories, *files]:
                os.lchown(os.path.join(parent, name), UID, UID)
        for path in (graph, top / "storage.conf"):
            os.chown(path, UID, UID)

    yield graph, id, own, secret
    shutil.rmtree(top)


def configure(graph: pathlib.Path, id: str, **more: object) -> None:
    config = {
        "process": {"args": ["/bin/busybox", "sleep", "9"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {},
    } | more
    (graph / f"overlay-containers/{id}/userdata/config.json").write_text(json.dumps(config))


def test_a_store_that_merges_what_only_root_may_enter(hostile):
    """An overlay takes a directory's mode from the top layer and its entries from all, so root's overlay would show
    them.
    """
    graph, id, own, secret = hostile
    (graph / f"overlay/{'b' * 64}/diff/secret").mkdir()
    (graph / f"overlay/{'b' * 64}/diff/bin/mark").write_text("user's")
    own()
    shutil.copytree(secret.parent, graph / "real")  # root's file, which a link of the user's points to
    for path in (graph / "real", *(graph / "real").rglob("*")):
        os.chown(path, 0, 0)
    os.symlink(graph / "real", graph / f"overlay/{'c' * 64}/diff")
    (graph / "real").chmod(0o755)
    configure(graph, id)
    os.chown(graph / f"overlay-containers/{id}/userdata/config.json", UID, UID)
    try:
        _, held = targets.hold("podman:mine", say=print)
    except CntrError as error:
        assert "stand-in" in error.message
        return
    try:
        seen = subprocess.run(
            [
                "nsenter",
                "-t",
                str(held.pid),
                "-U",
                "-S",
                "0",
                "-G",
                "0",
                "-m",
                "/bin/busybox",
                "cat",
                "/bin/mark",
                "/secret/open",
            ],
            **{"capture_output": True, "text": True},
        )
        assert seen.stdout.startswith("user's"), seen
        assert "root's" not in seen.stdout, seen
    finally:
        held.close()


def test_what_a_users_configuration_claims_is_that_users(hostile):
    graph, id, own, secret = hostile
    (graph / f"overlay/{'c' * 64}/diff").mkdir()
    rows = [{"containerID": 0, "hostID": 0, "size": 4294967295}]
    process = {
        "args": ["/bin/busybox"],
        "capabilities": {"bounding": ["ALL"]},
        "oomScoreAdj": -1000,
        "env": ["A=1", 5, "B"],
    }
    configure(
        graph,
        id,
        process=process,
        linux={
            "uidMappings": rows,
            "gidMappings": rows,
            "namespaces": [{"type": "network", "path": f"/proc/{os.getpid()}/ns/net"}],
        },
    )
    own()
    _, held = targets.hold("mine", say=print)
    try:
        status = procfs.status(procfs.read(f"/proc/{held.pid}/status"))
        assert (status["Uid"].split()[0], status["Gid"].split()[0]) == (str(UID), str(UID))
        assert procfs.read(f"/proc/{held.pid}/uid_map").split() == ["0", str(UID), "1"]
        assert os.readlink(f"/proc/{held.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert int(procfs.read(f"/proc/{held.pid}/oom_score_adj")) >= 0
    finally:
        held.close()
    process["env"] = ["A=1"]
    configure(
        graph, id, process=process, mounts=[{"type": "bind", "source": str(secret / "open"), "destination": "/volume"}]
    )
    own()
    with pytest.raises(CntrError, match="volume for /volume"):
        targets.hold("mine", say=print, exact=True)
    said: list[str] = []
    _, held = targets.hold("mine", say=said.append)
    try:
        assert [line for line in said if line.endswith(f"{secret}/open: Permission denied: left out")], said
        assert "/volume" not in procfs.read(f"/proc/{held.pid}/mountinfo")
    finally:
        held.close()


def a_users(hostile) -> pathlib.Path:
    """Its container's own layer, over one that is empty."""
    graph, id, own, _ = hostile
    (graph / f"overlay/{'c' * 64}/diff").mkdir()
    configure(graph, id)
    own()
    return graph / f"overlay/{'b' * 64}/diff"


def writing():
    _, held = targets.hold("podman:mine", write=True, say=print)
    return held


LOCKED = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
print("ok", flush=True)
sys.stdin.read()
"""


def test_root_and_the_user_write_to_a_layer_one_at_a_time(hostile, monkeypatch, tmp_path):
    """And what a user makes of it neither holds root up nor leads it elsewhere."""
    layer = a_users(hostile)
    user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", sys.executable, "-Sc", LOCKED, str(layer)]
    held = writing()
    try:
        with pytest.raises(CntrError, match="another session writes to its layer"):
            writing()
        refused = subprocess.run(user, capture_output=True, text=True, input="")
        assert "BlockingIOError" in refused.stderr
        targets.hold("podman:mine", say=print)[1].close()  # whose changes are thrown away
    finally:
        held.close()
    with subprocess.Popen(user, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "ok\n"
        with pytest.raises(CntrError, match="another session writes to its layer"):
            writing()
        other.communicate("")
    writing().close()

    lock, twin = one_writer.lock, layer.with_name("twin")
    shutil.copytree(layer, twin)

    def exchanged(made):
        fd = lock(made)
        layer.rename(layer.with_name("old"))
        twin.rename(layer)
        return fd

    os.chown(twin, UID, UID)
    monkeypatch.setattr(one_writer, "lock", exchanged)
    with pytest.raises(CntrError, match="another directory than a moment ago"):
        writing()
    monkeypatch.undo()
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(layer.parents[3] / "storage.conf"))
    shutil.rmtree(layer)
    for place, says in ((tmp_path, "is not there|Permission denied"), ("/usr", "its layer is uid 0's")):
        os.symlink(place, layer)
        with pytest.raises(CntrError, match=says):
            writing()
        layer.unlink()


@pytest.mark.parametrize("write", [True, False])
def test_a_users_layer_that_never_answers_is_waited_for_in_bounds(hostile, monkeypatch, write):
    layer = a_users(hostile)
    monkeypatch.setattr(one_writer, "SECONDS", 0.5)
    monkeypatch.setattr(standin, "SECONDS", 0.5)
    server = os.fork()
    if not server:
        try:
            stalling.mount(str(layer), frozenset((stalling.STATFS, stalling.OPENDIR)), UID)
        finally:
            signal.pause()
    try:
        wait_until(lambda: f" {layer} " in procfs.read("/proc/self/mountinfo"), "the mount")
        with pytest.raises(CntrError, match="timed out" if write else "no answer in 0 s from a file system of its"):
            targets.hold("podman:mine", write=write, say=print)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        syscalls.umount(str(layer), syscalls.MNT_DETACH)


def test_a_users_container_is_not_taken_for_one_of_an_engine_that_did_not_answer(hostile):
    """Root's Docker may have one of this name; and the user's engine can be named."""
    a_users(hostile)
    with pytest.raises(
        AmbiguousTarget, match=r"mine: docker did not answer; podman:mine, of .* is called so"
    ) as refused:
        targets.find("mine", late=("docker",))
    assert "podman:mine if that is the one" in refused.value.hint
    for target in ("mine", "podman:mine"):
        made = targets.find(target)
        assert (made.engine, made.owner) == ("podman", UID)
        made.close()


@pytest.mark.parametrize("error", [Refused("timed out"), TimeoutError(110, "timed out")], ids=["refused", "socket"])
def test_nor_if_the_engine_is_late_with_its_stopped_ones(hostile, monkeypatch, error):
    def late(*_arguments, **_more):
        raise error

    a_users(hostile)
    monkeypatch.setattr(targets, "module", lambda _engine: types.SimpleNamespace(find=late))
    with pytest.raises(AmbiguousTarget, match="did not answer; podman:mine, of"):
        targets.find("mine")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"process": 5}', '{"linux": [], "mounts": {}}', "[" * 100_000])
def test_an_invalid_configuration_is_one_error_or_a_bare_container(hostile, text):
    graph, id, own, _ = hostile
    (graph / f"overlay/{'c' * 64}/diff").mkdir()
    (graph / f"overlay-containers/{id}/userdata/config.json").write_text(text)
    own()
    try:
        held = targets.hold("podman:mine", say=print)
    except CntrError:
        return
    if held:
        held[1].close()
