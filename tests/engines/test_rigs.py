"""Each rig's each variant: the name resolves to the pid the engine itself reports, and the variant is what it says."""

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


def is_scratch(box):
    assert not os.path.exists(f"/proc/{box.pid}/root/bin")
    assert os.access(f"/proc/{box.pid}/root/app", os.X_OK)


def is_unprivileged(box):
    fields = status(box.pid)
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapBnd"], 16) == 0
    assert fields["Uid"].split()[0] in ("1000", "301000", "300999"), fields["Uid"]


def is_volume(box):
    mark = pathlib.Path(f"/proc/{box.pid}/root/data/mark")
    assert mark.read_text() == f"{box.name}\n"


def is_paused(box):
    assert status(box.pid)["State"].startswith(("D", "S", "T"))
    assert engines.evidence.state(box.pid) == "paused"


def is_keep_id(box):
    maps = procfs.id_map(procfs.read(f"/proc/{box.pid}/uid_map"))
    assert any(outside == box.rig.uid and count == 1 and inside == box.rig.uid for inside, outside, count in maps)


PROOFS = {
    "scratch": is_scratch,
    "unprivileged": is_unprivileged,
    "volume": is_volume,
    "paused": is_paused,
    "keep_id": is_keep_id,
    "read_only": lambda box: mounts(box.pid)["/"].options.index("ro"),
    "host_net": lambda box: same_namespace("net", box.pid) or pytest.fail("not in the host's"),
    "host_pid": lambda box: same_namespace("pid", box.pid) or pytest.fail("not in the host's"),
    "shared_pid": lambda box: status(box.pid)["NSpid"].split()[-1] != "1" or pytest.fail("it is pid 1"),
    "tmpfs": lambda box: mounts(box.pid)["/data"].fstype == "tmpfs" or pytest.fail("no tmpfs"),
    "no_proc": lambda box: "/proc" not in mounts(box.pid) or pytest.fail("there is a /proc"),
    "many_mounts": lambda box: len(mounts(box.pid)) > 2000 or pytest.fail("too few"),
    "deleted_exe": lambda box: os.readlink(f"/proc/{box.pid}/exe").endswith("(deleted)") or pytest.fail("not deleted"),
    "shared_root": lambda box: mounts(box.pid)["/"].propagation[0].startswith("shared:") or pytest.fail("not shared"),
}


@pytest.mark.parametrize(("rig", "variant"), rigs.CASES)
def test_the_name_is_enough(request, monkeypatch, rig, variant):
    with rigs.open_rig(request, rig).box(variant) as box:
        box.use(monkeypatch)
        found = engines.resolve(box.target)
        assert (found.engine, found.pid) == (box.rig.engine, box.pid)
        if box.pid:
            assert found.start_time == procfs.start_time(procfs.read(f"/proc/{box.pid}/stat"))
        if variant in PROOFS:
            PROOFS[variant](box)
        if box.rig.engine != "pid":
            assert engines.resolve(box.name).pid == box.pid, "without its engine's prefix"
            assert found.state == (variant if variant in ("paused", "sandboxed", "rootfs") else "running")
    if box.rig.engine != "pid":
        with pytest.raises(TargetNotFound):
            engines.resolve(box.target)
