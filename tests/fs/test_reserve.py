"""No user of CntrFS gets the space that a filesystem reserves for root, whoever runs the server."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cntr.cntrfs import backing
from cntr.cntrfs.devfuse import request
from cntr.linux import credentials
from testkit import loops
from testkit.servers import missing, open_to_others, served

from .actors import Actor

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
MIB = 1 << 20
_CAP_SYS_NICE = 23
USER = Actor("user", 1000, 1000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 32 MiB, half of it reserved for root."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is missing (Debian: e2fsprogs)")
    with open(tmp_path / "image", "wb") as image:
        image.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "50", tmp_path / "image"], check=True)
    (tmp_path / "disk").mkdir()
    open_to_others(tmp_path)
    with loops.mounted(tmp_path / "image", tmp_path / "disk") as disk:
        for name in ("source", "mount"):
            (disk / name).mkdir()
        (disk / "source").chmod(0o777)
        yield disk


def _fill(path: Path, allocate: bool) -> int:
    """The number of bytes that fit into a file before ENOSPC."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        written = 0
        while True:
            try:
                if allocate:
                    os.posix_fallocate(fd, written, MIB)
                    written += MIB
                else:
                    written += os.write(fd, b"x" * (MIB // 4))
                    os.fdatasync(fd)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return written
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", ["devfuse", "devfuse served", "devfuse allocated", "pyfuse3", "pyfuse3 uncached"])
def test_a_user_leaves_the_reserve(how: str, disk: Path, tmp_path: Path) -> None:
    binding, _, mode = how.partition(" ")
    words = {"served": ("-o", "no_passthrough"), "uncached": ("-o", "cache=none")}.get(mode, ())
    with served(binding, disk, words, log=tmp_path / "log"):
        # Root opens it first: one registration of a backing file serves all who have it open.
        (disk / "mount" / "file").touch()
        (disk / "mount" / "file").chmod(0o666)
        with open(disk / "mount" / "file"):
            written = USER(_fill, disk / "mount" / "file", mode == "allocated")
        assert 4 * MIB < written < 16 * MIB
        for number in range(2000):  # nor in new files
            try:
                USER((disk / "mount" / f"directory{number}").mkdir)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                break
            if number >= 5:
                break
        assert os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize > 12 * MIB


def test_root_keeps_it_for_names(disk: Path, tmp_path: Path) -> None:
    """Where the reserve is another user's, root has it by CAP_SYS_RESOURCE, which the server lays aside until it is needed."""
    subprocess.run(["mount", "-o", "remount,resuid=1234", disk], check=True)
    has_reserve = bool(credentials.capget()[0] >> credentials.CAP_SYS_RESOURCE & 1)

    def answers(top: Path) -> list[str]:
        found = []
        for make in (lambda: (top / f"by {top.name}").mkdir(), lambda: USER((top / "no room").mkdir)):
            try:
                make()
                found.append("made")
            except OSError as error:
                found.append(errno.errorcode[error.errno or 0])
        return found

    with served("devfuse", disk, log=tmp_path / "log"):
        USER(_fill, disk / "source" / "full", True)
        native, through = answers(disk / "source"), answers(disk / "mount")
    assert native == through == ["made" if has_reserve else "ENOSPC", "ENOSPC"]


def test_what_is_laid_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The capability, by another one that everybody here has: it is there inside ``spending`` alone, and not in a registration."""
    monkeypatch.setattr(backing, "_SPENDING", 1 << _CAP_SYS_NICE)
    monkeypatch.setattr(backing, "_PRIVILEGED", 1 << _CAP_SYS_NICE | 1 << credentials.CAP_FSETID)

    def effective() -> tuple[int, ...]:
        mask = credentials.capget()[0]
        wanted = (
            _CAP_SYS_NICE,
            credentials.CAP_FSETID,
            credentials.CAP_SYS_ADMIN,
            credentials.CAP_DAC_READ_SEARCH,
        )
        return tuple(mask >> capability & 1 for capability in wanted)

    def seen() -> list[tuple[int, ...]]:
        found = [effective()]
        server = backing.Credentials()
        server.be_frugal()
        found.append(effective())
        for scope in (server.spending(), server.registering(), server.without_fsetid()):
            with scope:
                found.append(effective())
            found.append(effective())
        with server.registering():
            user = credentials.setfsuid(0xFFFFFFFF)
        return [*found, (user,)]

    frugal = (0, 1, 1, 1)
    expected = [(1, 1, 1, 1), frugal, (1, 1, 1, 1), frugal, (0, 0, 1, 0), frugal, (0, 0, 1, 1), frugal, (65534,)]
    assert Actor("root", 0, 0)(seen) == expected


def test_no_room_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server tries again with all that it may use for root, and only once for a request."""
    core = SimpleNamespace(fds=SimpleNamespace(give_up_removed=lambda: False), credentials=SimpleNamespace())
    connection = object.__new__(request.Connection)
    monkeypatch.setattr(backing.Caller, "is_capable", lambda self, capability: self.uid == 0)
    found: list[object] = []
    for number, uid, scope in (
        (1, 0, "whole"),
        (1, 0, "whole"),
        (2, 1000, "whole"),
        (3, 0, backing.AS_IS),
        (4, 0, "whole"),
    ):
        core.credentials.spending = lambda scope=scope: scope
        connection.core, connection.header = core, (0, 0, number, 1, uid, 0, 7, 0)
        connection._spent_for = getattr(connection, "_spent_for", 0)
        found.append(connection.more_room())
    assert found == ["whole", None, None, None, "whole"]
