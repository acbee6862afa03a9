"""The container's memory limit: a session stays outside where it is near, and says so when the kernel kills for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cntr.attach import cgroup
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
    for name, text in zip(names, (limit, usage, f"low 0\noom_kill {kills}\n"), strict=True):
        (path / name).write_text(f"{text}\n")
    (path / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()))
    return cgroup.Membership("" if v2 else "memory", str(path))


@pytest.mark.parametrize("v2", [True, False])
def test_the_room_is_what_is_free_or_can_be_dropped(tmp_path, v2):
    prefix = "" if v2 else "total_"
    stat = {f"{prefix}inactive_file": 10 * MIB, f"{prefix}active_file": 5 * MIB, "anon": 40 * MIB}
    found = directory(tmp_path, v2, str(64 * MIB), 56 * MIB, stat, kills=3)
    memory = cgroup.Memory([found, cgroup.Membership("pids", str(tmp_path))])
    assert memory.room() == (23 * MIB, 64 * MIB)
    assert memory.kills() == 3
    assert memory.holds(found)
    directory(tmp_path, v2, "max" if v2 else str((1 << 63) - 4096), 56 * MIB, stat)
    assert cgroup.Memory([found]).room() is None


@pytest.mark.parametrize("v2", [True, False])
def test_a_limit_above_counts_too(tmp_path, v2):
    directory(tmp_path, v2, str(32 * MIB), 30 * MIB, {})
    found = directory(tmp_path / "inner", v2, str(64 * MIB), 10 * MIB, {})
    assert cgroup.Memory([found]).room() == (2 * MIB, 32 * MIB)


def test_without_the_controller_there_is_nothing_to_say(tmp_path):
    memory = cgroup.Memory([cgroup.Membership("pids", str(tmp_path))])
    assert (memory.room(), memory.kills()) == (None, 0)


HELD = "import sys, time; held = b'x' * (int(sys.argv[1]) << 20); print('up', flush=True); time.sleep(300)"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("held", "outside"), [(50, True), (4, False)])
def test_a_session_beside_a_full_container(runc: Runc, held, outside):
    """56 of 64 MiB are used: what the session takes must not get the container's own process killed."""
    with runc.container() as container:
        memberships, _ = cgroup.memberships(
            procfs.read(f"/proc/{container.pid}/cgroup"),
            procfs.read("/proc/self/cgroup"),
            procfs.read("/proc/self/mountinfo"),
        )
        memory = cgroup.Memory(memberships)
        if not memory.directories:
            pytest.skip("no memory controller is mounted")
        place, v2 = memory.directories[0], memory.v2
        with open(f"{place}/memory.{'max' if v2 else 'limit_in_bytes'}", "w") as stream:
            stream.write(str(64 * MIB))
        with subprocess.Popen(
            ["sh", "-c", f'echo $$ > {place}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", HELD, str(held)],
            stdout=subprocess.PIPE,
        ) as hog:
            assert hog.stdout
            assert hog.stdout.readline() == b"up\n"
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "cntr",
                    "attach",
                    container.target,
                    "--",
                    sys.executable,
                    "-c",
                    "b'x' * (30 << 20)",
                ],
                **{"env": container.env, "capture_output": True, "text": True},
            )
            assert hog.poll() is None, "the container's own process lives"
            hog.kill()
        assert done.returncode == 0, done.stderr
        assert ("stays outside its memory limit" in done.stderr) == outside, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_session_that_is_killed_for_memory_says_so(runc: Runc):
    with runc.container() as container:
        memberships, _ = cgroup.memberships(
            procfs.read(f"/proc/{container.pid}/cgroup"),
            procfs.read("/proc/self/cgroup"),
            procfs.read("/proc/self/mountinfo"),
        )
        memory = cgroup.Memory(memberships)
        if not memory.directories:
            pytest.skip("no memory controller is mounted")
        with open(f"{memory.directories[0]}/memory.{'max' if memory.v2 else 'limit_in_bytes'}", "w") as stream:
            stream.write(str(64 * MIB))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "cntr",
                "attach",
                container.target,
                "--",
                sys.executable,
                "-c",
                "b'x' * (200 << 20)",
            ],
            **{"env": container.env, "capture_output": True, "text": True},
        )
        assert done.returncode == 137
        assert f"{container.target} has reached its memory limit: the kernel killed the session" in done.stderr
