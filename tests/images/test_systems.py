"""What runs whole systems (LXC, LXD, Incus, systemd-nspawn), and Buildah's working containers: stopped, through the command line."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from cntr.errors import CntrError
from cntr.images import lxc_stopped, targets
from testkit.engines import rigs, workspaces
from tests.images.test_engines import Stopped


class Idle(Stopped):
    """A container of one of these, ended as its engine does that."""

    def kill(self) -> None:
        """By the engine's command."""
        self.env["CNTR_LXC_ROOT"], self.env["CNTR_NSPAWN_ROOT"] = (
            f"{self.rig.workspace.path}/lxc",
            self.rig.workspace.path,
        )
        rig, name = self.rig, self.container.name
        if rig.engine == "lxc":
            workspaces.run(["lxc-stop", "-k", "-P", rig.path, "-n", name], env=rig.workspace.env)
        elif rig.engine in ("lxd", "incus"):
            rig.command("stop", "--force", name)
        elif rig.engine == "nspawn":
            os.kill(self.container.pid, 9)
            rig.monitors[name].wait(timeout=20)
        rig.workspace.wait_for(
            "the end", lambda: not self.container.pid or not os.path.exists(f"/proc/{self.container.pid}")
        )


CASES = [
    *(("lxc", "busybox"), ("lxc", "userns"), ("lxd", "busybox"), ("incus", "busybox"), ("incus", "privileged")),
    *(("nspawn", "busybox"), ("nspawn", "userns"), ("buildah", "rootfs")),
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_system_that_does_not_run(request, name, variant):
    rig = rigs.open_rig(request, name)
    container = rig.container(variant)
    idle = Idle(rig, container)
    try:
        if name == "buildah":
            workspaces.run(["buildah", "umount", container.name], env=rig.workspace.env)
            workspaces.run(
                ["buildah", "config", "--cmd", "/bin/sleep 9", "--env", "MODE=prod", container.name],
                env=rig.workspace.env,
            )
        script = "cat /etc/motto; echo x > /etc/new; busybox stat -c %u /etc/new /etc/motto; id -u; hostname; cat /proc/self/uid_map"
        rows = idle.out(
            "exec", container.target, "--", "/bin/busybox", "sh", "-c", script.replace("hostname", "busybox hostname")
        ).split()
        assert rows[:5] == ["slim", "0", "0", "0", container.name], rows
        own = variant == "userns" or (name in ("lxd", "incus") and variant == "busybox")
        assert (rows[5], rows[6] != "0") == ("0", own), rows
        assert idle.out("attach", container.target, "--", "cat", "/var/lib/cntr/etc/motto") == "slim\n"
        assert [
            row
            for row in json.loads(idle.out("ps", "--all", "--json"))
            if not row["pid"] and row["name"] == container.name
        ]
        properties = {
            row["property"]: row["value"] for row in json.loads(idle.out("inspect", container.target, "--json"))
        }
        if name in ("lxd", "incus", "buildah"):
            assert properties["entrypoint check"] == "nothing is missing to start it"
        else:
            assert properties["command"] in ("/bin/sleep 100000", "/sbin/init")
        idle.cntr("exec", "--write", container.target, "--", "/bin/busybox", "sh", "-c", "echo fixed > /etc/fixed")
        assert idle.out("exec", container.target, "--", "/bin/busybox", "cat", "/etc/fixed") == "fixed\n"
        if name in ("lxd", "incus"):
            rig.command("start", container.name)
            assert rig.command(
                "exec", container.name, "--", "/bin/sh", "-c", "cat /etc/fixed; busybox stat -c %u /etc/fixed"
            ).split() == ["fixed", "0"]
    finally:
        if name == "lxc":
            subprocess.call(["rm", "-r", f"{rig.path}/{container.name}"])
        elif name != "nspawn":
            if name == "buildah":
                workspaces.run(["buildah", "mount", container.name], env=rig.workspace.env)
            rig.remove(container)


def test_a_configuration_of_lxcs(tmp_path, monkeypatch):
    """What the manual page says, an include, and values that are none."""
    directory = tmp_path / "web"
    (directory / "root").mkdir(parents=True)
    monkeypatch.setenv("CNTR_LXC_ROOT", str(tmp_path))
    (tmp_path / "more.conf").write_text("lxc.cap.drop = sys_admin mac_admin\nlxc.include = more.conf\n")
    (directory / "config").write_text(
        f"lxc.include = {tmp_path}/more.conf\n# lxc.uts.name = not\nlxc.uts.name=crashed\nlxc.rootfs.path = dir:{directory}/root\n"
        "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 200000 65536\nlxc.idmap = u 1 x 5\nlxc.idmap =\nlxc.cap.drop = sys_time\n"
        "lxc.environment = A=x=y\nlxc.environment = B\nlxc.init.cmd = /sbin/start now\nlxc.prlimit.nofile = 100:unlimited\n"
        f"lxc.prlimit.core = much\nlxc.mount.entry = {tmp_path} srv/data none ro,bind,create=dir 0 0\n"
        "lxc.mount.entry = /none a none bind,optional\n"
        "lxc.mount.entry = tmpfs run tmpfs rw\nlxc.mount.entry = broken\nlxc.rootfs.options = ro,noatime\nlxc.net.0.type = none\nnonsense\n"
    )
    made = targets.find("lxc:web")
    assert made
    assert (made.hostname, made.argv, made.upper) == ("crashed", ["/sbin/start", "now"], f"{directory}/root")
    assert (made.uid_map, made.gid_map) == ([(0, 100_000, 65_536)], [(0, 200_000, 65_536)])
    dropped = lxc_stopped.ALL & ~made.capabilities
    assert dropped == 1 << 21 | 1 << 33 | 1 << 25, "sys_admin mac_admin sys_time"
    assert (made.environment, made.limits) == ({"A": "x=y"}, {"RLIMIT_NOFILE": (100, -1)})
    assert [(one.kind, one.source, one.destination, one.read_only) for one in made.mounts] == [
        ("bind", str(tmp_path), "/srv/data", True),
        ("tmpfs", "", "/run", False),
    ]
    assert (made.read_only, made.share) == (True, {"net"})
    for path in ("zfs:pool/web", "overlay:a", f"dir:{tmp_path}/none", "nbd:image"):
        (directory / "config").write_text(f"lxc.rootfs.path = {path}\n")
        with pytest.raises(CntrError, match="no directory here"):
            targets.find("lxc:web")
    (directory / "config").write_text("lxc.uts.name = x\n")
    os.chown(directory / "config", 1000, 1000)
    with pytest.raises(CntrError, match="uid 1000 can write there"):
        targets.find("lxc:web")


def test_a_machine_of_systemds(tmp_path, monkeypatch):
    """Its settings, ids by its root's owner; a raw image is not mounted."""
    monkeypatch.setenv("CNTR_NSPAWN_ROOT", str(tmp_path))
    (tmp_path / "web").mkdir()
    (tmp_path / "disk.raw").write_bytes(bytes(4096))
    settings = tmp_path / "settings"
    settings.mkdir()
    monkeypatch.setattr("cntr.images.nspawn_stopped.SETTINGS", (str(settings),))
    (settings / "web.nspawn").write_text(
        "[Exec]\nParameters=/bin/start 'a b'\nEnvironment=A=1 B=2\nUser=app\nHostname=crashed\nDropCapability=CAP_SYS_ADMIN\n"
        f"[Files]\nReadOnly=yes\nBind={tmp_path}:/srv:norbind\nBindReadOnly={tmp_path}\nTemporaryFileSystem=/run/x:mode=0755\n;no=1\n"
    )
    os.chown(tmp_path / "web", 3 * 65_536, 3 * 65_536)
    made = targets.find("nspawn:web")
    assert made
    assert (made.argv, made.environment, made.user) == (["/bin/start", "a b"], {"A": "1", "B": "2"}, "app")
    assert (made.hostname, made.read_only, made.uid_map) == ("crashed", True, [(0, 3 * 65_536, 65_536)])
    assert not made.capabilities & 1 << 21
    assert [one.destination for one in made.mounts] == ["/srv", str(tmp_path), "/run/x"]
    assert {one.name for one in targets.module("nspawn").stopped(0)} >= {"web", "disk"}
    with pytest.raises(CntrError, match="image of a disk"):
        targets.find("nspawn:disk")
    os.chown(tmp_path / "web", 1000, 1000)
    with pytest.raises(CntrError, match="whose ids"):
        targets.find("nspawn:web")
