"""What the source's mounts forbid stays forbidden through CntrFS; set-id bits and devices work for
those who may use them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.linux import syscalls
from testkit.servers import BINDINGS, Server, missing, open_to_others, served
from tests.fs.syscalls import errno_of

from .actors import Actor

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
USER = Actor("user", 1000, 1000)
MS_REMOUNT, MS_SHARED = 32, 1 << 20
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep


def _fill(top: Path) -> None:
    top.chmod(0o755)
    shutil.copyfile(shutil.which("id") or "/usr/bin/id", top / "id")
    (top / "id").chmod(0o4755)
    os.setxattr(top / "id", "security.capability", CAPABILITY)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "null").chmod(0o666)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """``source`` with the same files in it and on the mounts ``source/below`` and ``source/bound``."""
    for name in ("source/below", "source/bound", "mount"):
        (tmp_path / name).mkdir(parents=True)
    open_to_others(tmp_path)
    source = tmp_path / "source"
    syscalls.mount("below", str(source / "below"), "tmpfs", 0)
    syscalls.mount("bound", str(source / "bound"), "tmpfs", 0)
    try:
        for place in (source, source / "below", source / "bound"):
            _fill(place)
        yield tmp_path
    finally:
        for name in ("below", "bound"):
            syscalls.umount(str(source / name), syscalls.MNT_DETACH)


def _remount(path: Path, flags: int) -> None:
    syscalls.mount(None, str(path), None, MS_REMOUNT | syscalls.MS_BIND | flags)


def _served(base: Path, binding: str, *words: str) -> contextlib.AbstractContextManager[Path]:
    return served(binding, base, ("-o", ",".join(words)))


def _effective(top: Path) -> str:
    """The id with which the set-id program runs, or why it does not run."""
    try:
        return subprocess.run([top / "id", "-u"], capture_output=True, check=True, text=True).stdout.strip()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _device(top: Path) -> int:
    return errno_of(lambda: os.close(os.open(top / "null", os.O_RDONLY)))


@pytest.mark.parametrize("binding", BINDINGS)
def test_they_do_not_work_unless_requested(binding: str, base: Path) -> None:
    with _served(base, binding, "keep_cache") as top:
        assert USER(_effective, top) == "1000"
        assert _device(top) == errno.EACCES
    with _served(base, binding, "suid", "dev") as top:
        assert USER(_effective, top) == "0"
        assert _device(top) == 0
        assert _device(top / "below") == 0


@pytest.mark.parametrize("binding", BINDINGS)
def test_the_flags_of_a_submount_are_kept(binding: str, base: Path) -> None:
    source = base / "source"
    _remount(source / "below", syscalls.MS_NOSUID | syscalls.MS_NODEV)
    _remount(source / "bound", syscalls.MS_NOEXEC)
    with _served(base, binding, "suid", "dev") as top:
        assert USER(_effective, top / "below") == "1000"
        assert _device(top / "below") == errno.ENXIO
        assert errno_of(lambda: os.getxattr(top / "below" / "id", "security.capability")) == errno.ENODATA
        assert os.listxattr(top / "below" / "id") == []
        assert USER(_effective, top / "bound") == "EACCES"
        assert (top / "bound" / "id").read_bytes() == (source / "id").read_bytes()
        assert USER(_effective, top) == "0"


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("flag", ["nosuid", "nodev", "noexec"])
def test_the_flags_of_the_source_are_kept(binding: str, flag: str, base: Path) -> None:
    source = base / "source"
    syscalls.mount(str(source), str(source), None, syscalls.MS_BIND)
    try:
        _remount(source, getattr(syscalls, f"MS_{flag.upper()}"))
        with _served(base, binding, "suid", "dev", "exec") as top:
            assert USER(_effective, top) == {"nosuid": "1000", "nodev": "0", "noexec": "EACCES"}[flag]
            assert _device(top) == (errno.EACCES if flag == "nodev" else 0)
    finally:
        syscalls.umount(str(source), syscalls.MNT_DETACH)


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("propagated", [False, True])
def test_a_mountpoint_inside_the_source(binding: str, propagated: bool, tmp_path: Path) -> None:
    """By its path, or as a copy that the kernel makes in a peer of the parent mount: the tree is unchanged."""
    if missing(binding):
        pytest.skip(missing(binding))
    real, peer = tmp_path / "real", tmp_path / "peer"
    for place in (real, peer):
        place.mkdir()
    (real / "sub" / "mount").mkdir(parents=True)
    (real / "sub" / "mount" / "hidden").touch()
    (real / "file").write_text("text")
    with contextlib.ExitStack() as stack:
        for place in (real, peer):
            syscalls.mount(str(real), str(place), None, syscalls.MS_BIND)
            stack.callback(syscalls.umount, str(place), syscalls.MNT_DETACH)
            if place == real:
                syscalls.mount(None, str(real), None, MS_SHARED)
        source = peer if propagated else real
        server = Server(binding, source, real / "sub" / "mount", tmp_path / "log")
        server.start()
        try:
            top = real / "sub" / "mount"
            assert (top / "file").read_text() == "text"
            assert sorted(path.name for path in top.rglob("*")) == ["file", "hidden", "mount", "sub"]
            (top / "sub" / "mount" / "new").write_text("new")
        finally:
            problem = server.stop()
        assert not problem
        assert (real / "sub" / "mount" / "new").read_text() == "new"


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_backing_without_acls(binding: str, tmp_path: Path) -> None:
    """On these, everything was refused to everybody but root (EOPNOTSUPP)."""
    if missing(binding):
        pytest.skip(missing(binding))
    for name in ("source", "mount"):
        (tmp_path / name).mkdir()
    open_to_others(tmp_path)
    source = tmp_path / "source"
    syscalls.mount("ramfs", str(source), "ramfs", 0)
    try:
        source.chmod(0o777)
        (source / "file").write_text("text")
        (source / "file").chmod(0o644)
        with _served(tmp_path, binding, "keep_cache") as top:
            assert USER((top / "file").read_text) == "text"
            USER(lambda: (top / "new").write_text("mine"))
            assert errno_of(lambda: os.getxattr(top / "file", "system.posix_acl_access")) in (
                errno.ENODATA,
                errno.EOPNOTSUPP,
            )
        assert (source / "new").stat().st_uid == USER.uid
    finally:
        syscalls.umount(str(source), syscalls.MNT_DETACH)
