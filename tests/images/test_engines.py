"""Stopped containers and images of real engines, through the command line: attach, exec, run, cp, inspect, ps."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import termios
import threading
import time

import pytest

from cntr.images import docker_store
from testkit.engines import cri, rigs, workspaces
from testkit.engines.rigs_cli import DockerWhole
from testkit.waiting import wait_until

RIGS = ("docker", "docker_remapped", "docker_snapshots", "podman", "containerd", "k8s")
ROOT = pathlib.Path(__file__).parents[2]


class Stopped:
    """A container whose process was killed, and cntr in the environment of its engine."""

    def __init__(self, rig, container) -> None:
        self.rig, self.container = rig, container
        self.env = {**rig.workspace.env, **container.env, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
        self.env["CNTR_CACHE_DIR"] = f"{rig.workspace.path}/cache"
        if rig.engine in ("containerd", "k8s"):
            self.env["CONTAINERD_ADDRESS"] = rig.socket
        self.kill()

    def kill(self) -> None:
        os.kill(self.container.pid, 9)
        self.rig.workspace.wait_for("the end", self.ended)
        self.forget(self.container.id)

    def forget(self, id: str) -> None:
        """conmon's `podman container cleanup` isn't given --runtime-flag."""
        records = f"{self.rig.workspace.path}/oci"
        if os.path.exists(f"{records}/{id}"):
            workspaces.run([self.rig.runtime, "--root", records, "delete", "--force", id])

    def ended(self) -> bool:
        """Whether the process has ended and the engine has cleaned up the container."""
        if os.path.exists(f"/proc/{self.container.pid}"):
            return False
        if self.rig.engine == "k8s":
            plugin = f"{self.rig.workspace.path}/root/io.containerd.grpc.v1.cri"
            return (
                json.loads(pathlib.Path(f"{plugin}/containers/{self.container.id}/status").read_text())["FinishedAt"]
                > 0
            )
        status = ("inspect", "--format", "{{.State.Status}}", self.container.name)
        return not hasattr(self.rig, "command") or self.rig.command(*status).strip() == "exited"

    def cntr(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "cntr", *arguments], env=self.env, cwd="/", capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=100,
        )  # fmt: skip
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def out(self, *arguments: str) -> str:
        return self.cntr(*arguments).stdout

    def diff(self) -> str:
        return self.rig.command("diff", self.container.name)


@pytest.fixture
def stopped(request):
    rig = rigs.open_rig(request, request.param)
    with rig.container("busybox") as container:
        yield Stopped(rig, container)


def of(*names: str):
    return pytest.mark.parametrize("stopped", names, indirect=True)


@of(*RIGS)
def test_a_session_in_a_container_that_has_ended(stopped):
    target = stopped.container.target
    script = "cat /var/lib/cntr/etc/motto; echo x > /var/lib/cntr/new && cat /var/lib/cntr/new"
    done = stopped.cntr("attach", target, "--", "sh", "-c", script)
    assert done.stdout.split()[:2] == ["slim", "x"], done.stdout
    assert "stand-in" in done.stderr
    if stopped.rig.engine in ("docker", "k8s"):  # tools through CntrFS, with a stopped container and an image
        for place in (target, "image:docker:slim:1")[: 2 if stopped.rig.engine == "docker" else 1]:
            served = stopped.out("attach", "--transport", "fuse", place, "--", "sh", "-c", f"{script}; stat -f -c %T /")
            assert served.split() == ["slim", "x", "fuseblk"], place
    assert stopped.out("exec", target, "--", "/bin/sh", "-c", "cat /etc/motto; ls /new; id -u").split()[:1] == ["slim"]
    status = stopped.out("exec", target, "--", "/bin/cat", "/proc/self/status").splitlines()
    assert ("Seccomp:\t2" in status) == (stopped.rig.engine not in ("containerd", "k8s")), (
        "a filter, the engine's own if it has one"
    )
    rows = json.loads(stopped.out("ps", "--all", "--json"))
    assert [row for row in rows if not row["pid"] and row["id"] == stopped.container.id[:12]], rows
    properties = {row["property"]: row["value"] for row in json.loads(stopped.out("inspect", target, "--json"))}
    assert properties["command"] == ("sleep 100000" if hasattr(stopped.rig, "command") else "/bin/sleep 100000")
    assert properties["entrypoint check"] == "nothing is missing to start it"
    if stopped.rig.engine != "containerd":
        assert properties["last exit status"] == "137 (signal 9)"


@of("docker", "docker_remapped", "docker_snapshots")
def test_nothing_is_different_afterwards_and_with_write_it_is_fixed(stopped):
    target, before = stopped.container.target, stopped.diff()
    script = "echo x > /etc/fixed; rm /etc/motto; mkdir -p /new/deep; chmod 700 /data"
    stopped.cntr("exec", target, "--", "/bin/sh", "-c", script.replace("rm", "/bin/busybox rm").replace("mkdir", "/bin/busybox mkdir")
                 .replace("chmod", "/bin/busybox chmod"))  # fmt: skip
    (pathlib.Path(stopped.rig.workspace.path) / "file").write_text("copied\n")
    assert stopped.diff() == before
    stopped.cntr("exec", "--write", target, "--", "/bin/sh", "-c", "echo fixed > /etc/fixed")
    stopped.cntr("cp", f"{stopped.rig.workspace.path}/file", f"{target}:/etc/copied")
    assert stopped.out("cp", f"{target}:/etc/fixed", "/dev/stdout") == "fixed\n"
    changed = set(stopped.diff().splitlines()) - set(before.splitlines())
    assert {"A /etc/fixed", "A /etc/copied"} <= changed <= {"A /etc/fixed", "A /etc/copied", "C /etc"}
    stopped.rig.command("start", stopped.container.name)
    stopped.container.pid = int(stopped.rig.command("inspect", "--format", "{{.State.Pid}}", stopped.container.name))
    assert stopped.out("exec", target, "--", "/bin/cat", "/etc/fixed", "/etc/copied") == "fixed\ncopied\n"
    assert "are for stopped containers" in stopped.cntr("exec", "--write", target, "--", "/bin/true", status=125).stderr


@of("docker", "podman")
def test_with_write_the_session_ends_when_the_engine_starts_the_container(stopped):
    session = subprocess.Popen(
        [sys.executable, "-m", "cntr", "exec", "--write", stopped.container.target, "--", "/bin/sh", "-c", "echo in; sleep 60"],
        env=stopped.env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with session:
        assert session.stdout
        assert session.stderr
        assert session.stdout.readline() == "in\n"
        stopped.rig.command("start", stopped.container.name)
        errors = session.stderr.read()
    assert session.returncode
    assert "was started: the session with --write ends" in errors


@pytest.mark.parametrize("engine", ["docker"])
def test_a_container_that_crash_loops_is_found_out_fixed_and_started(request, engine):
    """The recipe: see why it exits, fix a file with --write, start it."""
    rig = rigs.open_rig(request, engine)
    name = workspaces.unique("crash")
    flags = [*rig.extra, "--network", "none", "--name", name, "--env", "MODE=prod"]
    rig.command("create", *flags, "slim:1", "/data/start")
    made = pathlib.Path(rig.workspace.path, f"start-{name}")
    made.write_text("#!/bin/sh\r\nexec sleep 100000\r\n")
    made.chmod(0o755)
    rig.command("cp", str(made), f"{name}:/data/start")
    container = rigs.EngineContainer(rig, name, 0)
    with container:
        rig.command("start", name)
        status = ("inspect", "--format", "{{.State.Status}}", name)
        rig.workspace.wait_for("the crash", lambda: rig.command(*status).strip() == "exited")
        crashed = Stopped.__new__(Stopped)
        crashed.kill = lambda: None
        crashed.__init__(rig, container)
        properties = json.loads(crashed.out("inspect", container.target, "--json"))
        said = [row["value"] for row in properties if row["property"] == "entrypoint check"]
        assert [line for line in said if "CRLF" in line], said
        crashed.cntr("exec", "--write", container.target, "--", "/bin/busybox", "sed", "-i", "s/\\r//", "/data/start")
        rig.command("start", name)
        assert (
            crashed.out("exec", container.target, "--", "/bin/cat", "/data/start") == "#!/bin/sh\nexec sleep 100000\n"
        )


@of("docker", "podman")
def test_its_entrypoint_again_under_a_tool(stopped):
    name = workspaces.unique("run")
    flags = [*stopped.rig.extra, "--network", "none", "--name", name, "--env", "MODE=prod", "--user", "1000"]
    stopped.rig.command(
        "create", *flags, "slim:1", "/bin/sh", "-c", "echo $MODE $(id -u) $(pwd); cat /proc/1/missing; exit 7"
    )
    with rigs.EngineContainer(stopped.rig, name, 0):
        target = f"{stopped.rig.engine}:{name}"
        done = stopped.cntr("run", target, status=7)
        assert done.stdout.split() == ["prod", "1000", "/"]
        traced = stopped.cntr("run", target, "--", "strace", "-f", "-e", "trace=openat,open", status=7)
        assert traced.stdout.split() == ["prod", "1000", "/"]
        assert "/proc/1/missing" in traced.stderr


@of("docker", "podman")
def test_what_its_engine_would_not_start_is_looked_into_all_the_same(stopped):
    """A missing volume or user is reported and left out; `run` starts exactly what is configured, or nothing."""
    rig, name = stopped.rig, workspaces.unique("odd")
    place = pathlib.Path(rig.workspace.path, name)
    place.mkdir()
    flags = [
        "--user",
        "1000",
        "-v",
        f"{place}:/gone",
        "--ulimit",
        "nofile=11:11",
        "--pids-limit",
        "1",
        "--device",
        "/dev/fuse",
    ]
    flags += ["--sysctl", "net.ipv4.ip_unprivileged_port_start=99"]
    rig.command("create", *rig.extra, "--network", "none", "--name", name, *flags, "slim:1", "/bin/sh", "-c", "exit 7")
    with rigs.EngineContainer(rig, name, 0):
        target = f"{rig.engine}:{name}"
        assert stopped.cntr("run", target, status=7).stdout == ""
        place.rmdir()
        script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; busybox ls /gone"
        done = stopped.cntr("exec", target, "--", "/bin/sh", "-c", f"{script} || true")
        assert done.stdout == "99\n" or rig.engine == "podman"  # which does not list one that was never started
        assert f"its volume at /gone: {place}: No such file or directory: left out" in done.stderr
        assert "no devices but the usual ones: /dev/fuse" in done.stderr
        assert stopped.out("attach", target, "--", "cat", "/var/lib/cntr/etc/motto") == "slim\n"
        shown = json.loads(stopped.out("inspect", target, "--json"))
        assert any("/gone" in row["value"] for row in shown if row["property"] == "entrypoint check")
        refused = stopped.cntr("run", target, status=125)
        assert "open the volume for /gone" in refused.stderr


@of("docker", "podman", "containerd")
def test_images_as_targets_and_as_tools(stopped):
    engine, name = stopped.rig.engine, "slim:1" if stopped.rig.engine != "containerd" else "localhost/slim:1"
    for reference in (f"image:{name}", f"image:{engine}:{name}"):
        assert stopped.out("exec", reference, "--", "/bin/cat", "/etc/motto") == "slim\n"
    assert stopped.out("attach", f"image:{name}", "--", "cat", "/var/lib/cntr/etc/motto") == "slim\n"
    script = "cat /etc/motto; ls /bin/busybox; [ -e /usr/bin/python3 ] || echo none"
    tools = stopped.out("attach", stopped.container.target, "--tools", f"image:{name}", "--", "/bin/sh", "-c", script)
    assert tools.split() == ["slim", "/bin/busybox", "none"]
    rows = json.loads(stopped.out("cache", "--json"))
    assert [row["image"] for row in rows] in ([name], [name, name])
    stopped.cntr("cache", "clear")
    assert json.loads(stopped.out("cache", "list", "--json")) == []
    assert "never written" in stopped.cntr("exec", "--write", f"image:{name}", "--", "/bin/true", status=125).stderr
    assert f"{engine}: has none of that name" in stopped.cntr("exec", "image:nobody/has:it", status=125).stderr


@of("k8s")
def test_a_pods_container_joins_the_sandbox_while_it_lives_and_the_last_attempt_counts(stopped):
    rig, name = stopped.rig, stopped.container.name.split("/")[1]
    tasks = workspaces.run([*rig.cli, "task", "ls"], env=rig.workspace.env).splitlines()
    sandbox = next(row.split() for row in tasks if row.split()[0] == rig.pods[stopped.container.name])
    script = "/bin/busybox readlink /proc/self/ns/ipc; /bin/busybox hostname"
    for target in (stopped.container.target, f"k8s:{name}", f"k8s:prod/{name[:-2]}", stopped.container.id[:12]):
        out = stopped.out("exec", target, "--", "/bin/sh", "-c", script).split()
        assert out == [os.readlink(f"/proc/{sandbox[1]}/ns/ipc"), os.uname().nodename], target
    pod = cri.sandbox(name, "prod", f"uid-{name}", cgroup=f"/{rig.workspace.mark}", pid=cri.CONTAINER)
    again = cri.container("app", "localhost/slim:1", ["/data/start"], pid=cri.CONTAINER)
    again[1] = {1: "app", 2: 1}  # the second attempt
    second = rig.runtime.call("CreateContainer", {1: sandbox[0], 2: again, 3: pod})
    rows = json.loads(stopped.out("inspect", stopped.container.target, "--json"))
    assert {row["property"]: row["value"] for row in rows}["entrypoint check"].startswith("/data/start: ")
    script = "echo '#!/bin/sh' > /data/start; echo 'exit 5' >> /data/start; /bin/busybox chmod 755 /data/start"
    stopped.cntr("exec", "--write", stopped.container.target, "--", "/bin/sh", "-c", script)
    rig.runtime.call("StartContainer", {1: second})
    rig.runtime.call("StopPodSandbox", {1: sandbox[0]})
    rows = json.loads(stopped.out("inspect", stopped.container.target, "--json"))
    assert {row["property"]: row["value"] for row in rows}["last exit status"] == "5"


def test_a_container_whose_driver_has_no_layers():
    """vfs, as on file systems that cannot hold an overlay's layers; btrfs only differs in where its directories are."""
    rig = DockerWhole()
    try:
        with rig.container("busybox") as container:
            ended, target = Stopped(rig, container), container.target
            before = ended.diff()
            assert ended.out(
                "exec", target, "--", "/bin/sh", "-c", "cat /etc/motto; echo x > /new; cat /new"
            ).split() == ["slim", "x"]
            assert ended.out("exec", "image:slim:1", "--", "/bin/cat", "/etc/motto") == "slim\n"
            assert ended.diff() == before
            ended.cntr("exec", "--write", target, "--", "/bin/sh", "-c", "echo fixed > /etc/fixed")
            rig.command("start", container.name)
            assert rig.command("exec", container.name, "cat", "/etc/fixed") == "fixed\n"
    finally:
        rig.stop()


def test_a_file_that_docker_saved(docker, tmp_path, monkeypatch):
    saved = tmp_path / "saved.tar"
    docker.command("save", "-o", str(saved), "slim:1")
    monkeypatch.setenv("CNTR_CACHE_DIR", str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-m", "cntr", "exec", f"archive:{saved}", "--", "/bin/cat", "/etc/motto"],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.stdout == "slim\n", done.stderr


def test_an_answer_whose_head_arrives_alone(tmp_path):
    """The head of an HTTP answer and its body may arrive separately."""
    path, body = str(tmp_path / "docker.sock"), io.BytesIO()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve():
            with listener.accept()[0] as client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                wait_until(lambda: not int.from_bytes(fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)), sys.byteorder))
                client.sendall(b"an image")

        server = threading.Thread(target=serve)
        server.start()
        docker_store.download(path, "/images/x/get", body, time.monotonic() + 30)
        server.join()
    assert body.getvalue() == b"an image"
