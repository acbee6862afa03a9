"""``cntr cp --archive``: the files' owners, and that no right over the host comes out of a container."""

from __future__ import annotations

import os
import pathlib
import signal
import stat
import struct
from collections.abc import Iterator

import pytest

from cntr.cp import owners, stream
from cntr.cp.owners import Owners
from cntr.linux import syscalls
from testkit.container import SlimContainer
from tests.cli.trees import cp, done, look

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
FIRST, COUNT = 200000, 65536  # the host's ids of the user namespace


class Namespaced:
    """A process in a user namespace, as of rootless engines: ids FIRST… are 0… in it; its root directory is ``root``."""

    def __init__(self, root: pathlib.Path) -> None:
        ready, go = os.pipe(), os.pipe()
        root_fd = os.open(root, os.O_PATH)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(go[1])
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
                os.write(ready[1], b"u")
                os.read(go[0], 1)
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                os.fchdir(root_fd)
                os.chroot(".")
                os.write(ready[1], b"c")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(root_fd)
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            pathlib.Path(f"/proc/{self.pid}/{name}").write_text(f"0 {FIRST} {COUNT}")
        os.write(go[1], b"g")
        os.read(ready[0], 1)
        for fd in (*ready, *go):
            os.close(fd)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def users(tmp_path) -> Iterator[tuple[Namespaced, pathlib.Path]]:
    """A user's container, whose files belong to ids of the user namespace."""
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, FIRST, FIRST)
    process = Namespaced(root)
    yield process, root
    process.stop()


def put(path: pathlib.Path, uid: int, gid: int, mode: int) -> pathlib.Path:
    path.write_text("x")
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


def facts(path: pathlib.Path) -> tuple[int, int, int]:
    info = os.lstat(path)
    return info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)


def test_out_of_a_users_namespace_comes_nothing_of_roots_and_nothing_privileged(users, tmp_path):
    process, root = users
    (root / "d").mkdir()
    os.chown(root / "d", FIRST, FIRST)
    put(root / "d/su", FIRST, FIRST, 0o6755)
    put(root / "d/mail", FIRST + 8, FIRST + 12, 0o2711)
    os.setxattr(put(root / "d/ping", FIRST, FIRST, 0o755), "security.capability", CAPABILITY)
    (root / "d/link").symlink_to("su")
    os.lchown(root / "d/link", FIRST, FIRST)
    result = cp(f"{process.pid}:/d", tmp_path / "out", "--archive")
    assert result.returncode == 0
    said = result.stderr.decode()
    assert "d/mail (and 1 more): set-id bits not kept" in said.replace("out/", "d/"), said
    assert "ping: file capabilities not kept" in said
    out = tmp_path / "out"
    assert facts(out) == (FIRST, FIRST, 0o755)
    assert facts(out / "su") == (FIRST, FIRST, 0o755)
    assert facts(out / "mail") == (FIRST + 8, FIRST + 12, 0o711)
    assert facts(out / "link")[:2] == (FIRST, FIRST)
    assert os.listxattr(out / "ping") == []


def test_what_came_out_goes_back_to_whom_it_belonged(users, tmp_path):
    process, root = users
    (root / "d").mkdir()
    os.chown(root / "d", FIRST, FIRST)
    for index, uid in enumerate((0, 8, 1000, COUNT - 1)):
        put(root / f"d/{index}", FIRST + uid, FIRST + uid, 0o640)
    done(cp(f"{process.pid}:/d", tmp_path / "out", "-a"))
    done(cp(tmp_path / "out", f"{process.pid}:/back", "-a"))
    assert look(root / "back", owner=True) == look(root / "d", owner=True)


def test_an_id_of_the_host_keeps_its_number(users, tmp_path):
    """www-data is 33 on both sides; the host's root becomes the container's."""
    process, root = users
    put(tmp_path / "site", 33, 33, 0o644)
    put(tmp_path / "conf", 0, 0, 0o4644)
    for name in ("site", "conf"):
        done(cp(tmp_path / name, f"{process.pid}:/", "-a"))
    assert facts(root / "site") == (FIRST + 33, FIRST + 33, 0o644)
    assert facts(root / "conf") == (FIRST, FIRST, 0o4644), "inside, set-id bits give no rights outside the container"


def test_access_control_lists_name_the_same_user_on_both_sides(users, tmp_path):
    process, root = users

    def value(uid: int) -> bytes:
        rows = ((1, 6, stream.KEEP), (2, 6, uid), (4, 4, stream.KEEP), (16, 6, stream.KEEP), (32, 0, stream.KEEP))
        return owners.ACL_VERSION + b"".join(struct.pack("<HHI", *row) for row in rows)

    os.setxattr(put(root / "f", FIRST, FIRST, 0o640), "system.posix_acl_access", value(FIRST + 5))
    done(cp(f"{process.pid}:/f", tmp_path / "f", "-a"))
    assert os.getxattr(tmp_path / "f", "system.posix_acl_access") == value(FIRST + 5)
    done(cp(tmp_path / "f", f"{process.pid}:/g", "-a"))
    assert os.getxattr(root / "g", "system.posix_acl_access") == value(FIRST + 5)


def test_roots_container_keeps_owners_but_gives_no_rights_either(tmp_path):
    with SlimContainer("cpowners") as container:
        (tmp_path / "d").mkdir()
        file = put(tmp_path / "d/su", 1234, 2345, 0o6755)
        os.setxattr(file, "security.capability", CAPABILITY)
        (tmp_path / "d/link").symlink_to("su")
        os.lchown(tmp_path / "d/link", 1234, 2345)
        os.chown(tmp_path / "d", 1, 2)
        os.chmod(tmp_path / "d", 0o2750)
        done(cp(tmp_path / "d", f"{container.pid}:/plain"))
        assert facts(container.root / "plain/su") == (0, 0, 0o755)
        assert os.listxattr(container.root / "plain/su") == []
        assert facts(container.root / "plain")[2] == 0o750
        done(cp(tmp_path / "d", f"{container.pid}:/kept", "--archive"))
        assert look(container.root / "kept", owner=True) == look(tmp_path / "d", owner=True)
        assert os.listxattr(container.root / "kept/su") == ["security.capability"]
        done(cp(f"{container.pid}:/kept", tmp_path / "out"))
        assert facts(tmp_path / "out/su")[2] == 0o755
        assert os.listxattr(tmp_path / "out/su") == []
        result = cp(f"{container.pid}:/kept", tmp_path / "again", "-a")
        assert result.returncode == 0
        assert result.stderr.count(b"not kept: whoever fills the container") == 2
        assert facts(tmp_path / "again") == (1, 2, 0o2750)
        assert facts(tmp_path / "again/su") == (1234, 2345, 0o755)
        assert facts(tmp_path / "again/link")[:2] == (1234, 2345)
        assert os.listxattr(tmp_path / "again/su") == []


def test_ids_that_the_other_side_does_not_have():
    ids = Owners()
    assert ids.outward(0, 5) == ids.inward(0, 5) == (0, 5)
    ids.start_time, ids.uid_map, ids.gid_map = 1, ((0, 1000, 1), (1, 100000, 65536)), ((0, 1000, 1),)
    assert ids.outward(0, 0) == (1000, 1000)
    assert ids.outward(33, 33) == (100032, stream.KEEP)
    assert ids.outward(65537, 0) == (stream.KEEP, 1000)
    assert ids.outward(stream.KEEP, stream.KEEP) == (stream.KEEP, stream.KEEP)
    assert ids.inward(1000, 1000) == (0, 0)
    assert ids.inward(100032, 100032) == (33, 100032)
    assert ids.inward(33, 0) == (33, 0)


def test_a_users_container_without_a_user_namespace_has_no_file_of_roots():
    """Apptainer's setuid mode: the user chose the ids in the image."""
    ids = Owners()
    ids.owner, ids.start_time, ids.uid_map, ids.gid_map = 1000, 1, ((0, 0, 1 << 32),), ((0, 0, 1 << 32),)
    assert ids.outward(0, 0) == (1000, stream.KEEP)


def test_a_users_fuse_server_cannot_decide_on_owners():
    text = (
        "36 35 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "41 36 0:44 / /home/u/mnt rw,nosuid,nodev - fuse.sshfs host: rw,user_id=1000,group_id=1000\n"
        "42 36 0:45 / /var/lib/lxcfs rw - fuse.lxcfs lxcfs rw,user_id=0,group_id=0,allow_other\n"
        "43 36 0:46 / /x rw - fuse x rw,user_id=0123\n"
    )
    assert owners._strangers(text) == {os.makedev(0, 44), os.makedev(0, 46)}


@pytest.mark.parametrize(
    "value", [b"", b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0abc", b"\2\0\0\0" + b"\2\0\7\0" + b"\xff" * 4]
)
def test_an_access_control_list_that_is_none(value):
    assert owners.acl(value, Owners().outward) is None
