"""attach, exec, ps and inspect by name, through the command line, on every engine that runs here, in its variants."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from cntr.linux import procfs
from testkit.engines import rigs

TRANSPORTS = ("mount", "fuse")
REAL = [
    case
    for case in rigs.CASES
    if rigs.RIGS[case.values[0]].engine != "pid" and case.values[1] not in ("rootfs", "sandboxed")
]


# Engines and variants with something special; the others repeat the same path, in long runs.
DAILY = ("busybox", "scratch", "userns", "keep_id", "shared_pid", "as_pid2", "paused")
ATTACHED = [
    case if case.values[1] in DAILY else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow) for case in REAL
]


def mounts_of(pid: int) -> list[str]:
    """A container's mounts, without those of other rigs, which propagate into some containers (Apptainer)."""
    lines = procfs.read(f"/proc/{pid}/mountinfo").splitlines()
    return [line for line in lines if "/cntr-rig-" not in procfs.Mount(line).mount_point]


def cntr(
    container: rigs.EngineContainer, *arguments: str, input: str = "", timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run cntr in the environment of the container's engine."""
    return subprocess.run(
        [sys.executable, "-m", "cntr", *arguments],
        cwd=pathlib.Path(__file__).parents[2],
        env=container.env | {"PYTHONWARNINGS": ""},
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("rig", "variant"), ATTACHED)
def test_attach_by_name(request, rig, variant, transport):
    with rigs.open_rig(request, rig).container(variant) as container:
        mounts = mounts_of(container.pid)
        done = cntr(
            *(container, "attach", "--transport", transport, container.target, "--", "sh", "-c"),
            'cat "/var/lib/cntr/$1"; readlink /proc/self/ns/*; command -v python3 || command -v perl',
            *("sh", "etc/motto" if variant != "scratch" else "proc/../nothing"),
        )
        lines = done.stdout.splitlines()
        if variant == "scratch":
            assert "No such file" in done.stderr, "a scratch image has no such file"
        else:
            assert lines[:1] == ["slim"], f"the container's own file: {done.stdout}\n{done.stderr}"
        for kind in ("pid", "net", "ipc", "uts", "user"):
            if variant != "paused" or kind != "cgroup":
                assert namespace(container.pid, kind) in lines, f"{kind}: {done.stdout}\n{done.stderr}"
        assert lines[-1].startswith("/"), "the host's own tools are on PATH"
        assert mounts_of(container.pid) == mounts, "nothing was mounted in the container"


@pytest.mark.parametrize(("rig", "variant"), [c for c in REAL if c.values[1] in ("busybox", "userns", "read_only")])
def test_exec_runs_the_containers_own_command(request, rig, variant):
    with rigs.open_rig(request, rig).container(variant) as container:
        out = ok(
            cntr(
                container, "exec", container.target, "--", "/bin/sh", "-c", "cat /etc/motto; readlink /proc/self/ns/pid"
            )
        )
        assert out.split() == ["slim", namespace(container.pid, "pid")]


@pytest.mark.parametrize(
    ("rig", "variant"), [c for c in rigs.CASES if c.values[1] in ("busybox", "paused", "sandboxed", "rootfs")]
)
def test_ps_shows_it_once(request, rig, variant):
    rig = rigs.open_rig(request, rig)
    if rig.engine == "pid":
        return  # a process without an engine is no container
    with rig.container(variant) as container:
        rows = json.loads(ok(cntr(container, "ps", "--json")))
        own = [row for row in rows if row["pid"] == container.pid and (container.pid or row["name"] == container.name)]
        assert len(own) == 1, rows
        assert (own[0]["engine"], own[0]["name"]) == (rig.engine, container.name)
        assert own[0]["state"] == (variant if variant != "busybox" else "running")
        assert container.id.startswith(own[0]["id"]) or rig.engine in ("apptainer", "gvisor")
        table = ok(cntr(container, "ps"))
        assert container.name in table
        assert table.splitlines()[0].split()[:2] == ["ENGINE", "NAME"]


@pytest.mark.parametrize(("rig", "variant"), [c for c in REAL if c.values[1] == "busybox"])
def test_inspect_and_doctor_know_it(request, rig, variant):
    with rigs.open_rig(request, rig).container(variant) as container:
        rows = json.loads(ok(cntr(container, "inspect", container.target, "--json")))
        assert len(rows) > 10
        findings = {row["feature"]: row for row in json.loads(cntr(container, "doctor", "--json").stdout)}
        engine = {"lxd": "lxc", "incus": "lxc"}.get(container.rig.engine, container.rig.engine)
        assert findings[f"engine {engine}"]["state"] == "answers", findings


def test_a_sandbox_is_refused_with_what_to_do(gvisor):
    with gvisor.container("sandboxed") as container:
        for command in ("attach", "exec"):
            done = cntr(container, command, container.target, "--", "true")
            assert done.returncode == 125
            assert "not on this host" in done.stderr
            assert "runsc exec" in done.stderr
            assert "/root" in done.stderr, "the error names the directory"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_working_container_without_a_process(buildah, transport):
    """A session with the host's tools and only the root directory of the container."""
    with buildah.container("rootfs") as container:
        script = "cat /var/lib/cntr/etc/motto; readlink /proc/self/ns/net; touch /var/lib/cntr/made"
        out = ok(cntr(container, "attach", "--transport", transport, container.target, "--", "sh", "-c", script))
        assert out.split() == ["slim", namespace("self", "net")]
        assert os.path.exists(f"{container.rootfs}/made")
        done = cntr(container, "exec", container.target, "--", "/bin/true")
        assert done.returncode == 0
        assert "a stand-in replaces the missing process" in done.stderr
        assert (
            ok(cntr(container, "attach", "--tools", container.rootfs, str(os.getpid()), "--", "cat", "/etc/motto"))
            == "slim\n"
        )
