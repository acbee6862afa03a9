"""For each variant of each rig: the name resolves to the pid that the engine reports, and the variant is what it
claims.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from cntr import engines
from cntr.errors import TargetNotFound
from cntr.linux import procfs
from testkit.engines import rigs


def status(pid: int) -> dict[str, str]:
    return procfs.status(procfs.read(f"/proc/{pid}/status"))


def same_namespace(kind: str, pid: int) -> bool:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino


def mounts(pid: int) -> dict[str, procfs.Mount]:
    return {mount.mount_point: mount for mount in procfs.mountinfo(procfs.read(f"/proc/{pid}/mountinfo"))}


def is_scratch(container):
    assert not os.path.exists(f"/proc/{container.pid}/root/bin")
    assert os.access(f"/proc/{container.pid}/root/app", os.X_OK)


def is_unprivileged(container):
    fields = status(container.pid)
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapBnd"], 16) == 0
    assert fields["Uid"].split()[0] in ("1000", "301000", "300999"), fields["Uid"]


def is_volume(container):
    mark = pathlib.Path(f"/proc/{container.pid}/root/data/mark")
    assert mark.read_text() == f"{container.name}\n"


def is_paused(container):
    assert status(container.pid)["State"].startswith(("D", "S", "T"))
    assert engines.evidence.state(container.pid) == "paused"


def is_keep_id(container):
    maps = procfs.id_map(procfs.read(f"/proc/{container.pid}/uid_map"))
    assert any(
        outside == container.rig.uid and count == 1 and inside == container.rig.uid for inside, outside, count in maps
    )


PROOFS = {
    "scratch": is_scratch,
    "unprivileged": is_unprivileged,
    "volume": is_volume,
    "paused": is_paused,
    "keep_id": is_keep_id,
    "read_only": lambda container: mounts(container.pid)["/"].options.index("ro"),
    "host_net": lambda container: same_namespace("net", container.pid) or pytest.fail("not in the host's namespace"),
    "host_pid": lambda container: same_namespace("pid", container.pid) or pytest.fail("not in the host's namespace"),
    "shared_pid": lambda container: status(container.pid)["NSpid"].split()[-1] != "1" or pytest.fail("it is pid 1"),
    "tmpfs": lambda container: mounts(container.pid)["/data"].fstype == "tmpfs" or pytest.fail("no tmpfs"),
    "no_proc": lambda container: "/proc" not in mounts(container.pid) or pytest.fail("there is a /proc"),
    "many_mounts": lambda container: len(mounts(container.pid)) > 2000 or pytest.fail("too few"),
    "deleted_exe": lambda container: (
        os.readlink(f"/proc/{container.pid}/exe").endswith("(deleted)") or pytest.fail("not deleted")
    ),
    "shared_root": lambda container: (
        mounts(container.pid)["/"].propagation[0].startswith("shared:") or pytest.fail("not shared")
    ),
}


@pytest.mark.parametrize(("rig", "variant"), rigs.CASES)
def test_the_name_is_enough(request, monkeypatch, rig, variant):
    with rigs.open_rig(request, rig).container(variant) as container:
        container.use(monkeypatch)
        found = engines.resolve(container.target)
        assert (found.engine, found.pid) == (container.rig.engine, container.pid)
        if container.pid:
            assert found.start_time == procfs.start_time(procfs.read(f"/proc/{container.pid}/stat"))
        if variant in PROOFS:
            PROOFS[variant](container)
        if container.rig.engine != "pid":
            assert engines.resolve(container.name).pid == container.pid, "also without its engine's prefix"
            assert found.state == (variant if variant in ("paused", "sandboxed", "rootfs") else "running")
    if container.rig.engine != "pid":
        with pytest.raises(TargetNotFound):
            engines.resolve(container.target)
