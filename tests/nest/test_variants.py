"""Containers of real engines in variants that break such tools: the session's identity, and that the container gets no
access.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import time

import pytest

from cntr.linux import procfs
from testkit.engines import rigs
from tests.nest.busybox import BusyboxContainer, run
from tests.nest.test_hostile import ground, visits

PTRACE = 1 << 19
VARIANTS = [
    *(
        ("docker", variant)
        for variant in ("scratch", "read_only", "unprivileged", "host_net", "host_pid", "shared_pid", "paused")
    ),
    *(("docker_remapped", variant) for variant in ("busybox", "unprivileged")),
    *(("podman_rootless", variant) for variant in ("scratch", "unprivileged", "keep_id")),
    *(("runc", variant) for variant in ("userns", "read_only", "unprivileged")),
    *(("bwrap", variant) for variant in ("no_proc", "scratch")),
    *(("byhand", variant) for variant in ("chroot", "deleted_exe", "shared_root")),
]


def status(text: str) -> dict[str, str]:
    return procfs.status(text)


def inside(outside: int, rows: tuple[tuple[int, int, int], ...]) -> int:
    return next(first + outside - mapped for first, mapped, count in rows if mapped <= outside < mapped + count)


@pytest.mark.parametrize(("rig", "variant"), [pytest.param(*pair, id="-".join(pair)) for pair in VARIANTS])
def test_the_session_is_who_the_container_is(request, rig, variant):
    with rigs.open_rig(request, rig).container(variant) as container:
        before = procfs.read(f"/proc/{container.pid}/mountinfo")
        script = "cat /proc/self/status; for n in pid net ipc uts user; do readlink /proc/self/ns/$n; done; ls -A /var/lib/cntr"
        done = run("attach", container.target, "--", "sh", "-c", script, env=container.env)
        assert done.returncode == 0, done
        found, theirs = status(done.stdout), status(procfs.read(f"/proc/{container.pid}/status"))
        uid_map = procfs.id_map(procfs.read(f"/proc/{container.pid}/uid_map"))
        assert int(found["Uid"].split()[1]) == inside(int(theirs["Uid"].split()[1]), uid_map)
        assert found["NoNewPrivs"] == "1", (
            "a set-id program would lose the capability that keeps the container out (guard.py)"
        )
        # In the host's pid namespace a session could trace root's processes with it.
        kept = 0 if variant == "host_pid" else PTRACE
        assert int(found["CapBnd"], 16) == int(theirs["CapBnd"], 16) | kept
        assert int(found["CapPrm"], 16) & ~PTRACE & ~int(theirs["CapBnd"], 16) == 0, (
            "nothing beyond the container's bounding set"
        )
        assert int(found["CapPrm"], 16) & PTRACE == kept, "CAP_SYS_PTRACE keeps the container's processes out"
        for kind in ("pid", "net", "ipc", "uts", "user"):
            assert os.readlink(f"/proc/{container.pid}/ns/{kind}") in done.stdout, kind
        names = {path.name for path in pathlib.Path(f"/proc/{container.pid}/root").iterdir()}
        assert names <= set(done.stdout.split())
        assert procfs.read(f"/proc/{container.pid}/mountinfo") == before
        if container.upper:
            assert not os.path.exists(f"{container.upper}/var"), "nothing may be created in the container's layer"


# How to start an attacker in a container, and where it can write: a volume, or /tmp through /proc/PID/root.
HOSTILE = (
    ("docker", "busybox", "0", ("same", "1000", "1000+")),
    ("docker", "unprivileged", "1000", ("same",)),
    ("docker_remapped", "volume", "0", ("same", "1000", "1000+")),
    ("podman_rootless", "volume", "0", ("same", "1000", "1000+")),
)


@pytest.mark.parametrize(
    ("rig", "variant", "uid", "roles"), [pytest.param(*case, id="-".join(case[:2])) for case in HOSTILE]
)
def test_a_hostile_container_of_a_real_engine_gets_nothing(request, prowler, rig, variant, uid, roles):
    with rigs.open_rig(request, rig).container(variant) as container:
        if variant == "volume":
            directory, place = pathlib.Path(container.rig.workspace.path, f"volume-{container.name}"), "/data"
        else:
            directory, place = pathlib.Path(f"/proc/{container.pid}/root/tmp"), "/tmp"
        shutil.copy(prowler, directory / "prowl")
        loot = ground(directory)
        container.rig.command("exec", "-d", "--user", uid, container.name, f"{place}/prowl", f"{place}/loot", *roles)
        container.rig.workspace.wait_for(
            "the attackers", lambda: loot.path.with_name("loot.seen").stat().st_size > 0, seconds=10
        )
        for flags in ([], ["--user", "1000"]):
            visits(container.target, flags, rounds=2, env=container.env)
        time.sleep(0.05)
        assert loot.lines() == []
        assert loot.seen() > 200, "the attackers must have looked"


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_tools_of_a_container_with_a_user_namespace(request, transport):
    """Its mounts are locked together, so none can be cloned alone; files that only some may read are covered
    nevertheless.
    """
    with rigs.open_rig(request, "runc").container("userns") as fat, BusyboxContainer() as container:
        secret = pathlib.Path(f"/proc/{fat.pid}/root/secret")
        secret.write_text("secret\n")
        secret.chmod(0o600)
        (secret.parent / "open").write_text("open\n")
        script = "cat /open; cat /secret; cat /proc/1/comm"
        done = container.attach("--tools", f"pid:{fat.pid}", "--transport", transport, "--", "/bin/sh", "-c", script)
        assert done.stdout == "open\napp\n", done
        assert done.returncode == 0
