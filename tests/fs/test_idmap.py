"""An idmapped mount of CntrFS (FUSE_ALLOW_IDMAP, kernel 6.12) shows the owners that one of the backing tree would."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cntr.linux import syscalls as kernel
from testkit.servers import TreeUnderTest, missing, open_to_others, place

from . import syscalls
from .actors import Actor, fork

START = 300000  # id 0 of the filesystem, seen through the mount
OWNER = Actor("owner", START + 5, START + 5, (START + 6,))
OTHER = Actor("other", START + 7, START + 7)
OUTSIDE = Actor("outside", 20001, 20001)  # an id to which none of the filesystem's is mapped
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_libc = ctypes.CDLL(None, use_errno=True)


def user_namespace() -> int:
    """An fd of a user namespace with ids 0… = 300000…; no process is in it."""
    read_end, write_end = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(write_end, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.read(read_end, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {START} 65536")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_end)
        os.close(write_end)


@contextlib.contextmanager
def idmapped(path: Path, where: Path) -> Iterator[Path]:
    """The tree at PATH, mounted again with mapped ids; OSError EINVAL if the filesystem does not support it."""
    os.listdir(path)  # before INIT is answered, nothing is known of the server
    tree = _libc.syscall(ctypes.c_long(_OPEN_TREE), -100, os.fsencode(path), 1 | os.O_CLOEXEC)
    assert tree >= 0, os.strerror(ctypes.get_errno())
    namespace = user_namespace()
    try:
        attributes = struct.pack("=QQQQ", kernel.MOUNT_ATTR_IDMAP, 0, 0, namespace)
        call = ctypes.c_long(_MOUNT_SETATTR)
        if _libc.syscall(call, tree, b"", 0x1000, attributes, ctypes.c_size_t(len(attributes))):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        kernel.move_mount(tree, -100, str(where))
    finally:
        os.close(tree)
        os.close(namespace)
    try:
        yield where
    finally:
        kernel.umount(str(where), kernel.MNT_DETACH)


def tried(function: Any, *arguments: Any) -> str:
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def write(path: str, flags: int = 0, mode: int = 0o666) -> None:
    fd = os.open(path, os.O_WRONLY | flags, mode)
    os.write(fd, b"data")
    os.close(fd)


def make(top: str) -> list[str]:
    """One of each kind, and operations that change an owner or depend on one."""
    os.umask(0o022)

    def nameless() -> None:
        fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600)
        syscalls.linkat(-100, f"/proc/self/fd/{fd}", -100, f"{top}/linked", 0x400)
        os.close(fd)

    os.mkdir(f"{top}/shared")
    return [
        tried(write, f"{top}/file", os.O_CREAT | os.O_EXCL), tried(os.mkdir, f"{top}/directory"),
        tried(os.symlink, "target", f"{top}/symlink"), tried(os.mkfifo, f"{top}/fifo"), tried(nameless),
        tried(os.link, f"{top}/file", f"{top}/hard"), tried(os.chown, f"{top}/file", -1, START + 6),
        tried(os.chown, f"{top}/file", START + 7, -1), tried(os.chmod, f"{top}/file", 0o6755),
        tried(os.chown, f"{top}/shared", -1, START + 6), tried(os.chmod, f"{top}/shared", 0o2777),
        tried(os.mkdir, f"{top}/shared/inherits"), tried(write, f"{top}/shared/file", os.O_CREAT),
        tried(os.utime, f"{top}/file", (1, 1)), tried(os.rename, f"{top}/hard", f"{top}/shared/moved"),
        tried(os.setxattr, f"{top}/directory", "user.mine", b"1"), tried(write, f"{top}/private", os.O_CREAT, 0o600),
    ]  # fmt: skip


def meddle(top: str) -> list[str]:
    """What another user may do there, and may not."""
    return [
        tried(write, f"{top}/private"), tried(os.chmod, f"{top}/file", 0o777), tried(os.unlink, f"{top}/directory"),
        tried(write, f"{top}/new", os.O_CREAT), tried(write, f"{top}/shared/other", os.O_CREAT),
        tried(os.truncate, f"{top}/suid", 1), tried(write, f"{top}/sgid"), tried(os.stat, f"{top}/private"),
        tried(os.setxattr, f"{top}/directory", "user.mine", b"2"), tried(os.mkdir, f"{top}/shared/others"),
    ]  # fmt: skip


def run(top: Path) -> list[object]:
    """All steps, on an idmapped tree that nobody owns yet; returns their results."""
    os.chown(top, OWNER.uid, OWNER.gid)
    steps: list[object] = [OWNER(make, str(top))]
    for name, mode in (("suid", 0o4777), ("sgid", 0o2777)):
        steps.append(OWNER(tried, write, f"{top}/{name}", os.O_CREAT))
        steps.append(OWNER(tried, os.chmod, f"{top}/{name}", mode))
    for actor in (OTHER, OUTSIDE):
        steps.append(actor(meddle, str(top)))
    steps.append([tried(os.chown, top / "private", uid, uid) for uid in (START + 9, START + 70000, 0)])
    steps.append(tried(write, str(top / "by-root"), os.O_CREAT))
    return steps


def owners(top: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            seen = path.lstat()
            found[str(path.relative_to(top))] = seen.st_uid, seen.st_gid, seen.st_mode, seen.st_size
    assert all(stat.S_IFMT(mode) for _, _, mode, _ in found.values())
    return found


@pytest.fixture
def here() -> Iterator[TreeUnderTest]:
    if missing("devfuse"):
        pytest.skip(missing("devfuse"))
    with place("devfuse") as made:
        yield made


def test_ownership_as_on_the_backing_tree(here: TreeUnderTest, tmp_path: Path) -> None:
    native = Path(tmp_path, "native")
    for directory in (native, tmp_path / "seen", tmp_path / "mapped", here.behind / "tree"):
        directory.mkdir()
    open_to_others(tmp_path)
    with contextlib.ExitStack() as stack:
        try:
            plain = stack.enter_context(idmapped(native, tmp_path / "seen"))
        except OSError as error:
            pytest.skip(f"no idmapped mounts of the filesystem of {native}: {error.strerror}")
        try:
            mounted = stack.enter_context(idmapped(here.directory / "tree", tmp_path / "mapped"))
        except OSError as error:
            assert error.errno == errno.EINVAL
            pytest.skip("the kernel has no idmapped mounts of FUSE (6.12)")
        expected = run(plain)
        assert run(mounted) == expected
        assert owners(mounted) == owners(plain)
        assert owners(here.behind / "tree") == owners(native)
        assert {uid for uid, *_ in owners(native).values()} == {5, 7, 9}
    shutil.rmtree(native)
