"""Stopped containers of whole systems (LXC, LXD, Incus, systemd-nspawn) and of Buildah, through the command line."""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import uuid

import pytest

from cntr.errors import CntrError
from cntr.images import disk, lxc_stopped, targets
from cntr.linux import loop
from testkit.engines import rigs, workspaces
from testkit.waiting import wait_until
from tests.images.test_engines import Stopped


class Idle(Stopped):
    """A container of one of these engines, stopped by it."""

    def kill(self) -> None:
        """Stop it by the engine's command."""
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
    """Syntax from the manual page, an include, and invalid values."""
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
    assert (made.environment, made.limits) == ({"container": "lxc", "A": "x=y"}, {"RLIMIT_NOFILE": (100, -1)})
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
    """Its settings, and ids according to its root's owner."""
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
    os.chown(tmp_path / "web", 1000, 1000)
    with pytest.raises(CntrError, match="whose ids"):
        targets.find("nspawn:web")


ROOT, _, VERITY = disk.ROOTS.get(os.uname().machine, ("", "", ""))


def table(path: pathlib.Path, *partitions: tuple[str, bytes, int]) -> pathlib.Path:
    """A GPT with these partitions (type, content, attributes), from 1 MiB on, without the backup table."""
    entries, content, at = b"", b"", 2048
    for kind, data, attributes in partitions:
        data += bytes(-len(data) % (1 << 20))
        entries += uuid.UUID(kind).bytes_le + uuid.uuid4().bytes_le
        entries += b"".join(
            value.to_bytes(8, "little") for value in (at, at + len(data) // 512 - 1, attributes)
        ) + bytes(72)
        content, at = content + data, at + len(data) // 512
    entries = entries.ljust(128 * 128, b"\0")
    middle = b"".join(value.to_bytes(8, "little") for value in (1, at, 34, at - 1)) + uuid.uuid4().bytes_le
    middle += (2).to_bytes(8, "little") + b"".join(
        value.to_bytes(4, "little") for value in (128, 128, binascii.crc32(entries))
    )
    start = b"EFI PART\0\0\1\0" + (92).to_bytes(4, "little")
    check = binascii.crc32(start + bytes(8) + middle)
    header = start + check.to_bytes(4, "little") + bytes(4) + middle
    path.write_bytes((bytes(512) + header.ljust(512, b"\0") + entries).ljust(1 << 20, b"\0") + content)
    return path


def ext4(path: pathlib.Path, root: str) -> bytes:
    subprocess.run(["mkfs.ext4", "-q", "-e", "panic", "-d", root, str(path), "16M"], check=True, capture_output=True)
    return path.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_disk_image_is_mounted_if_named_with_raw(tmp_path):
    """By both transports and each command, read-only. Nothing is left of it, even after kill -9, and its file is
    unchanged.
    """
    try:
        with open(tmp_path / "try", "wb") as file:
            file.truncate(1 << 20)
        with open(tmp_path / "try", "rb") as file:
            os.close(loop.attach(file.fileno(), 0, 1 << 20))
    except OSError as error:
        pytest.skip(f"no loop devices: {error}")
    tmp_path.chmod(0o755)
    root = workspaces.busybox_root(f"{tmp_path}/root")
    start = pathlib.Path(root, "sbin/init")
    start.parent.mkdir()
    start.write_text("#!/bin/sh\necho started\n")
    start.chmod(0o755)
    pathlib.Path(root, "data/unused").write_text("x")
    data = ext4(tmp_path / "bare.raw", root)
    table(tmp_path / "table.raw", (disk.LINUX, b"", 0), (ROOT, data, 0), (ROOT, data, disk.NO_AUTO))
    names = ["bare", "table"]
    if shutil.which("mksquashfs"):
        subprocess.run(["mksquashfs", root, str(tmp_path / "squash.raw"), "-quiet"], check=True, capture_output=True)
        names.append("squash")
    env = {**os.environ, "CNTR_NSPAWN_ROOT": str(tmp_path), "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    before = {name: (tmp_path / f"{name}.raw").read_bytes() for name in names}

    def cntr(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "cntr", *arguments],
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done

    for name in names:
        done = cntr("exec", f"raw:{name}", "--", "/bin/sh", "-c", "cat /etc/motto; echo x > /etc/new; cat /etc/new")
        assert done.stdout == "slim\nx\n"
        assert (
            f"the kernel reads the {'squashfs' if name == 'squash' else 'ext4'} of {tmp_path}/{name}.raw" in done.stderr
        )
    for transport in ("mount", "fuse"):
        script = ("attach", "--transport", transport, "raw:table", "--", "cat", "/var/lib/cntr/etc/motto")
        assert cntr(*script).stdout == "slim\n"
    assert cntr("cp", "raw:table:/etc/motto", "/dev/stdout").stdout == "slim\n"
    assert "/sbin/init" in cntr("inspect", "raw:table").stdout
    assert cntr("run", "raw:table").stdout == "started\n"
    slimmed, owned = tmp_path / "slim.tar", tmp_path / "owned"
    shutil.copytree(root, owned, symlinks=True)
    for path in (owned, *owned.rglob("*")):
        os.lchown(path, 655360, 655360)  # as for a machine with --private-users
    for machine in ("raw:bare", "nspawn:owned"):
        words = ("slim", machine, "-o", str(slimmed), "--cmd", "/bin/cat /etc/motto")
        assert "works unpacked" in cntr(*words).stderr
        assert cntr("exec", f"archive:{slimmed}", "--", "/bin/cat", "/etc/motto").stdout == "slim\n"
        left_out = cntr("slim", "diff", machine, f"archive:{slimmed}", status=1).stdout.splitlines()
        assert left_out[:-1] == ["- /data/unused"]
    assert "no machine of that name" in cntr("slim", "raw:none", status=125).stderr
    assert "no engine is named" in cntr("slim", "raw:bare", "--load", status=125).stderr
    assert not loops(tmp_path)
    assert "bare.raw" in cntr("ps", "--all").stdout
    for refused in ("nspawn:bare", "bare"):
        assert "hint: if you trust it: raw:bare" in cntr("exec", refused, "--", "/bin/true", status=125).stderr
    assert "never written" in cntr("exec", "--write", "raw:bare", "--", "/bin/true", status=125).stderr
    assert "never written" in cntr("cp", __file__, "raw:bare:/etc/x", status=125).stderr
    command = [sys.executable, "-m", "cntr", "exec", "raw:bare", "--", "/bin/sh", "-c", "echo in; sleep 60"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as session:
        assert session.stdout
        assert session.stdout.readline() == "in\n"
        assert loops(tmp_path)
        session.kill()
    wait_until(lambda: not loops(tmp_path))
    assert {name: (tmp_path / f"{name}.raw").read_bytes() for name in names} == before
    found = disk.Disk(f"{tmp_path}/bare.raw")
    mounted = found.mount()
    options = [
        path.read_text()
        for path in pathlib.Path("/proc/fs/ext4").glob("loop*/options")
        if path.parent.name in loops(tmp_path)
    ]
    os.close(mounted)
    found.close()
    assert ["errors=continue" in text for text in options] == [True], "an image must not make this machine panic"


def loops(directory: pathlib.Path) -> list[str]:
    """The loop devices on files in a directory."""
    found = []
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(f"{directory}/"):
                found.append(path.parts[3])
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_disk_image_that_is_not_to_be_mounted(tmp_path):
    """Refused for different reasons before the kernel reads it."""
    tmp_path.chmod(0o755)
    data = bytes(1080) + b"\x53\xef" + bytes(4096)
    good = (ROOT, data, 0)
    path = tmp_path / "x.raw"

    def change(at: int, text: bytes) -> None:
        raw = table(path, good).read_bytes()
        path.write_bytes(raw[:at] + text + raw[at + len(text) :])

    cases = {
        "no ext4": lambda: path.write_bytes(b"nothing" * 100),
        "no ext4 ": lambda: path.write_bytes(b""),
        "LUKS": lambda: path.write_bytes(b"LUKS\xba\xbe\0\2" + bytes(4096)),
        "encrypted": lambda: table(path, (ROOT, b"LUKS\xba\xbe", 0)),
        "verity data": lambda: table(path, good, (VERITY, b"verity\0\0", 0)),
        "/usr": lambda: table(path, good, (disk.ROOTS[os.uname().machine][1], data, 0)),
        "no partitions": lambda: table(path, ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", data, 0)),
        "no partitions ": lambda: table(path, (ROOT, data, disk.NO_AUTO)),
        "2 partitions": lambda: table(path, good, good),
        "wrong checksum": lambda: change(1024 + 20, b"evil"),
        "wrong checksum ": lambda: change(512 + 40, b"evil"),
        "table is none": lambda: change(512 + 80, b"\xff\xff\xff\xff"),
        "table is none ": lambda: change(512 + 12, b"\xff\xff"),
        "behind its end": lambda: (table(path, good), os.truncate(path, 1 << 20)),
        "others than root": lambda: (table(path, good), path.chmod(0o666)),
        "uid 1000": lambda: (table(path, good), os.chown(path, 1000, 0)),
        "not a regular file": lambda: os.mkfifo(path),
    }
    for says, make in cases.items():
        path.unlink(missing_ok=True)
        make()
        with pytest.raises(CntrError) as refused:
            disk.Disk(str(path)).close()
        assert says.strip() in refused.value.message, says
