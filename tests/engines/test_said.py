"""Messages about containers that exist but can't be joined, and facts that an engine knows better than the process
shows.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from cntr import engines
from cntr.attach.target import Target
from cntr.engines import pids, registry, settings, store
from cntr.errors import CntrError, TargetNotFound
from cntr.linux import procfs
from testkit.engines.rigs_cli import Docker, Podman
from testkit.engines.rigs_containerd import Containerd
from testkit.engines.workspaces import unique
from tests.cli.run import CNTR, cntr


def said(target: str) -> tuple[str, str]:
    with pytest.raises(CntrError) as caught:
        engines.verify(engines.resolve(target))
    return caught.value.message, caught.value.hint


@pytest.fixture
def made(request):
    """Containers made by an engine's command, removed at the end."""
    found: list[tuple[Any, str]] = []
    yield found
    for rig, name in found:
        rig.command("rm", "-f", name)


def test_dockers_created_restarting_and_ended_ones(docker: Docker, made, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", docker.settings["DOCKER_HOST"])
    created, restarting, ended = (unique(kind) for kind in ("created", "restarting", "ended"))
    made += [(docker, name) for name in (created, restarting, ended)]
    flags = ("--network", "none")
    docker.command("create", "--name", created, *flags, "slim:1", "sleep", "1")
    docker.command("run", "-d", "--name", ended, *flags, "slim:1", "sh", "-c", "exit 42")
    docker.command("wait", ended)
    docker.command("run", "-d", "--name", restarting, "--restart", "always", *flags, "slim:1", "sh", "-c", "exit 3")
    docker.workspace.wait_for(
        "a restart", lambda: "restarting" in docker.command("inspect", "-f", "{{.State.Status}}", restarting)
    )
    message, hint = said(f"docker:{created}")
    assert message.endswith(f"docker has {created}, but it is created and was never started")
    assert hint == f"`docker start {created}` starts it"
    message, hint = said(f"docker:{ended}")
    assert f"docker has {ended}, but it is exited (exit status 42)" in message
    assert f"docker logs {ended}" in hint
    message = hint = ""

    def is_told() -> bool:  # between two restarts; it may also be running, or ending
        nonlocal message, hint
        try:
            message, hint = said(f"docker:{restarting}")
        except pytest.fail.Exception:  # it is running, so nothing was raised
            return False
        return "ends at once" in message

    docker.workspace.wait_for("its rest", is_told)
    assert "restarting: its program ends at once, last with exit status 3" in message
    assert "start it" not in hint
    assert f"docker logs {restarting}" in hint


def test_podmans_exit_status(podman_newer: Podman, made, monkeypatch):
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", podman_newer.settings["CONTAINERS_STORAGE_CONF"])
    ended, created = unique("ended"), unique("created")
    made += [(podman_newer, ended), (podman_newer, created)]
    flags = (*podman_newer.extra, "--network", "none")
    podman_newer.command("create", "--name", created, *flags, "slim:1", "sleep", "1")
    podman_newer.command("run", "-d", "--name", ended, *flags, "slim:1", "sh", "-c", "exit 42")
    podman_newer.command("wait", ended)
    podman_newer.workspace.wait_for("the end", lambda: "(exit status 42)" in said(f"podman:{ended}")[0])
    assert f"podman logs {ended}" in said(f"podman:{ended}")[1]
    assert "created and was never started" in said(f"podman:{created}")[0]


def test_a_container_of_containerds_without_a_task(containerd: Containerd, monkeypatch):
    monkeypatch.setenv("CONTAINERD_ADDRESS", containerd.socket)
    name = unique("taskless")
    ctr = ["ctr", "-a", containerd.socket]
    subprocess.run([*ctr, "containers", "create", "localhost/slim:1", name, "sleep", "1"], check=True)
    try:
        message, hint = said(f"containerd:{name}")
        assert f"containerd has default/{name}, but it is not running: it has no task" in message
        assert f"tasks start --detach {name}" in hint
        assert f"default/{name}, but it is not running" in said(name)[0]
    finally:
        subprocess.run([*ctr, "containers", "rm", name], check=True)


@pytest.mark.parametrize(
    ("host", "hint"),
    [("ssh://admin@far", "cntr --host ssh://admin@far attach"), ("tcp://10.0.0.1:2376", "run cntr there")],
)
def test_a_daemon_on_another_machine(monkeypatch, host, hint):
    monkeypatch.setenv("DOCKER_HOST", host)
    message, shown = said("docker:web")
    assert "another machine" in message
    assert hint in shown
    assert "stopped" not in shown


COMMANDS = ("attach {}", "exec {} true", "inspect {}", "cp {}:/x /tmp", "run {}")


@pytest.mark.parametrize("listens", [True, False])
def test_a_daemon_that_is_down_or_hangs(tmp_path, listens):
    """Every command says which engine's answer is missing, and what to do; none waits as long as for a named engine's."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        if listens:
            listener.listen()
        why = r"docker \((no answer in time|timed out)\)" if listens else rf"docker \(nobody listens on {path}\)"
        for words in COMMANDS[: 4 if listens else 5]:
            began = time.monotonic()
            done = cntr(*words.format("no-such").split(), DOCKER_HOST=f"unix://{path}")
            line, hint = done.stderr.splitlines()
            assert re.search(f"no such container|no running container of that name .*refused: {why}", line), line
            assert ("when it is named" if listens else "is the daemon running?") in hint
            assert time.monotonic() - began < 5, words  # a named one gets ten


@pytest.mark.parametrize(
    "host", ["unix://", "unix://relative", f"unix:///{'x' * 108}", "nonsense", "fd://", "://x", "tcp://"]
)
def test_an_address_that_is_none(host):
    for target in ("no-such", "docker:no-such"):
        line, hint = cntr("exec", target, "true", DOCKER_HOST=host).stderr.splitlines()
        assert f"refused: docker (DOCKER_HOST or the context names {host}: no daemon's address)" in line
        assert hint.startswith("hint: correct it, or choose this machine's daemon")


def test_an_engine_that_is_not_here():
    """It is not asked, and neither is its command, which would wait for a daemon."""
    absent = next((entry.name for entry in registry.REGISTRY if not entry.present()), "")
    if not absent:
        pytest.skip("needs an engine that is not installed here")
    line = cntr("exec", f"{absent}:web", "true").stderr.splitlines()[0]
    assert line == f"cntr: {absent}:web: no running container of that name (not on this machine: {absent})"


def test_root_without_cap_sys_admin():
    with subprocess.Popen(["sleep", "300"]) as process:
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *CNTR, "attach", f"pid:{process.pid}"],
            **{"capture_output": True, "text": True},
        )
        process.kill()
    assert done.returncode == 125
    assert "root without CAP_SYS_ADMIN" in done.stderr
    assert "--privileged --pid=host" in done.stderr


# --- the engine knows better ------------------------------------------------------------------------------------------

TITLE = """
import ctypes, os, sys, time
with open("/proc/self/stat") as stream:
    fields = stream.read().rpartition(")")[2].split()
start, end = int(fields[47]), int(fields[48])
ctypes.memset(start, 0, end - start)
ctypes.memmove(start, b"app: worker", 11)
print("up", flush=True)
time.sleep(300)
"""


@pytest.fixture
def titled(tmp_path):
    """A process whose title overwrites its environment."""
    with subprocess.Popen(
        [sys.executable, "-c", TITLE], env={"A": "x" * 100, "B": "1"}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_an_overwritten_environment_is_the_engines(titled, tmp_path):
    container = engines.Container("pid", "x", titled)
    target = Target(container, impatient=True)
    target.close()
    assert target.environment == {}
    assert target.notes == ["the process has overwritten its environment: what is left of it is shown"]
    container.spec = str(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"process": {"env": ["A=1", "B=x=y"], "cwd": "/tmp"}}))
    target = Target(container, impatient=True)
    try:
        assert target.environment == {"A": "1", "B": "x=y"}
        assert "engine's configuration" in target.notes[0]
        assert target.working_directory() == "/tmp"
    finally:
        target.close()


@pytest.mark.parametrize("rig", ["docker", "podman", "runc", "containerd", "k8s"])
def test_each_engine_knows_what_it_started(request, rig, monkeypatch):
    with request.getfixturevalue(rig).container() as container:
        container.use(monkeypatch)
        known = settings.of(engines.resolve(container.target))
        assert known
        assert "PATH" in known[0] or rig == "docker", "an image's own"
        assert known[1].startswith("/")


def test_a_process_whose_first_thread_has_ended():
    """By pthread_exit in the main thread: /proc/PID is a zombie's, its threads' directories are not."""
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: (print('up', flush=True), time.sleep(300))).start()\n"
        "ctypes.CDLL(None).pthread_exit(0)"
    )
    command = ["unshare", "-m", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "MARK": "here"}) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            while procfs.living(process.pid) == f"/proc/{process.pid}":
                os.sched_yield()
            assert pids.start_time(process.pid)
            found = engines.resolve(f"pid:{process.pid}")
            target = Target(found, impatient=True)
            assert target.environment["MARK"] == "here"
            target.close()
            done = cntr("attach", str(process.pid), "--", "echo", "inside")
            assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr
        finally:
            process.kill()


@pytest.mark.parametrize("flags", [["-it"], ["-i", "-t"], ["-ti", "-v"], ["--interactive", "--tty"]])
def test_dockers_habits_are_accepted(runc, flags):
    with runc.container() as container:
        for command in (["attach", *flags, container.target, "--", "true"], ["exec", *flags, container.target, "true"]):
            done = subprocess.run(
                [sys.executable, "-m", "cntr", *command], env=container.env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["image", "archive", "oci", "dir", "pid", "unit", "command", "raw", "docker", "host", "k8s"]
)
def test_a_container_called_like_a_prefix(runc, name, tmp_path):
    with runc.container(name=name) as container:

        def run(*words):
            command = [sys.executable, "-m", "cntr", *words]
            return subprocess.run(command, env=container.env, capture_output=True, text=True)

        done = run("exec", name, "cat", "/etc/motto")
        assert (done.returncode, done.stdout) == (0, "slim\n"), done.stderr
        done = run("attach", name, *(("--tools", name) if name != "host" else ()), "true")
        assert (done.returncode, done.stderr) in ((0, ""), (127, done.stderr)), "the image has no true"
        done = run("cp", f"{name}:/etc/motto", str(tmp_path))
        assert (done.returncode, (tmp_path / "motto").read_text()) == (0, "slim\n"), done.stderr
        done = run("attach", name, "--write", "true")
        assert done.stderr.startswith(f"cntr: runc:{name} is running: --write"), done.stderr
        if name in ("image", "archive", "oci", "dir"):
            for words in (
                ("exec", f"{name}:", "true"),
                ("run", f"{name}:"),
                ("cp", f"{name}::/x", "."),
                ("inspect", f"{name}:"),
            ):
                assert run(*words).stderr.startswith(f"cntr: '{name}:': not an image's name\n"), words


def test_what_is_said_of_each_state():
    assert "never started" in store.ended("docker", "web", "created", 0)[0]
    assert "killed for lack of memory" in store.ended("docker", "web", "exited", 137, True)[0]
    with pytest.raises(TargetNotFound):
        engines.resolve("pid:4194303")
