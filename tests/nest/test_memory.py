"""The container's memory limit: a session stays outside if the limit is nearly reached, and reports a kill by it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from cntr.attach import cgroup, memory
from cntr.linux import procfs
from testkit.engines.rigs_runtimes import Runc

MIB = 1 << 20


def directory(path, v2: bool, limit: str, usage: int, stat: dict[str, int], kills: int = 0):
    path.mkdir(exist_ok=True)
    names = ("memory.max", "memory.current", "memory.events") if v2 else (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.oom_control",
    )  # fmt: skip
    for name, text in zip(names, (limit, usage, f"low 0\noom_kill {kills}\n")):
        (path / name).write_text(f"{text}\n")
    (path / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()))
    return cgroup.Membership("" if v2 else "memory", str(path))


@pytest.mark.parametrize("v2", [True, False])
def test_the_room_is_what_is_free_or_can_be_dropped(tmp_path, v2):
    prefix = "" if v2 else "total_"
    stat = {f"{prefix}inactive_file": 10 * MIB, f"{prefix}active_file": 5 * MIB, "anon": 40 * MIB}
    found = directory(tmp_path, v2, str(64 * MIB), 56 * MIB, stat, kills=3)
    limits = cgroup.Memory([found, cgroup.Membership("pids", str(tmp_path))])
    assert limits.room() == (23 * MIB, 64 * MIB)
    assert limits.kills() == 3
    assert limits.holds(found)
    directory(tmp_path, v2, "max" if v2 else str((1 << 63) - 4096), 56 * MIB, stat)
    assert cgroup.Memory([found]).room() is None


@pytest.mark.parametrize("v2", [True, False])
def test_a_limit_above_counts_too(tmp_path, v2):
    directory(tmp_path, v2, str(32 * MIB), 30 * MIB, {})
    found = directory(tmp_path / "inner", v2, str(64 * MIB), 10 * MIB, {})
    assert cgroup.Memory([found]).room() == (2 * MIB, 32 * MIB)


def test_without_the_controller_there_is_nothing_to_say(tmp_path):
    limits = cgroup.Memory([cgroup.Membership("pids", str(tmp_path))])
    assert (limits.room(), limits.kills()) == (None, 0)


@pytest.mark.parametrize("v2", [True, False])
def test_the_processes_that_are_left(tmp_path, v2):
    inner = tmp_path / "inner"
    inner.mkdir()
    found = cgroup.Membership("" if v2 else "pids", str(inner))
    assert memory.processes_left(found) is None
    for directory, limit, used in ((inner, "max", 7), (tmp_path, "10", 8)):
        (directory / "pids.max").write_text(f"{limit}\n")
        (directory / "pids.current").write_text(f"{used}\n")
    assert memory.processes_left(found) == (2, 10), "a limit further up counts, too"
    (inner / "pids.max").write_text("5\n")  # lowered since: usage is above the limit
    assert memory.processes_left(found) == (0, 5)
    assert memory.processes_left(cgroup.Membership("memory", str(inner))) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_a_session_beside_a_container_that_may_start_no_process(runc: Runc, transport):
    with runc.container() as container:
        memberships, _ = cgroup.memberships(
            procfs.read(f"/proc/{container.pid}/cgroup"),
            procfs.read("/proc/self/cgroup"),
            procfs.read("/proc/self/mountinfo"),
        )
        places = [one.directory for one in memberships if os.path.exists(f"{one.directory}/pids.max")]
        if not places:
            pytest.skip("no pids controller is mounted")
        pathlib.Path(places[0], "pids.max").write_text("1")
        attach = [sys.executable, "-m", "cntr", "attach", "--transport", transport, container.target, "--"]
        done = subprocess.run(
            [*attach, "sh", "-c", "echo a | cat"], env=container.env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr
        assert "has 0 processes left of 1: the session stays outside that limit" in done.stderr
        own = [sys.executable, "-m", "cntr", "exec", container.target, "--", "true"]
        refused = subprocess.run(own, env=container.env, capture_output=True, text=True, check=False)
        assert refused.returncode == 125
        assert "--no-cgroup" in refused.stderr
        own.insert(4, "--no-cgroup")
        assert subprocess.run(own, env=container.env, check=False).returncode == 0


HELD = "import sys, time; held = b'x' * (int(sys.argv[1]) << 20); print('up', flush=True); time.sleep(300)"


def limited(container) -> str:
    """Limit the container's memory to 64 MiB; return its cgroup's directory. Skips without a memory controller."""
    memberships, _ = cgroup.memberships(
        procfs.read(f"/proc/{container.pid}/cgroup"),
        procfs.read("/proc/self/cgroup"),
        procfs.read("/proc/self/mountinfo"),
    )
    limits = cgroup.Memory(memberships)
    if not limits.directories:
        pytest.skip("no memory controller is mounted")
    place = limits.directories[0]
    pathlib.Path(place, f"memory.{'max' if limits.v2 else 'limit_in_bytes'}").write_text(str(64 * MIB))
    return place


def attached(container, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python CODE in a session."""
    argv = [sys.executable, "-m", "cntr", "attach", container.target, "--", sys.executable, "-c", code]
    return subprocess.run(argv, env=container.env, capture_output=True, text=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("held", "outside"), [(50, True), (4, False)])
def test_a_session_beside_a_full_container(runc: Runc, held, outside):
    """56 of 64 MiB are used: the session's memory must not get the container's own process killed."""
    with runc.container() as container:
        place = limited(container)
        with subprocess.Popen(
            ["sh", "-c", f'echo $$ > {place}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", HELD, str(held)],
            stdout=subprocess.PIPE,
        ) as hog:
            assert hog.stdout
            assert hog.stdout.readline() == b"up\n"
            done = attached(container, "b'x' * (30 << 20)")
            assert hog.poll() is None, "the container's own process must survive"
            hog.kill()
        assert done.returncode == 0, done.stderr
        assert ("stays outside its memory limit" in done.stderr) == outside, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_session_that_is_killed_for_memory_says_so(runc: Runc):
    with runc.container() as container:
        limited(container)
        done = attached(container, "b'x' * (200 << 20)")
        assert done.returncode == 137
        assert f"{container.target} has reached its memory limit: the kernel killed the session" in done.stderr
