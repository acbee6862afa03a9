"""No user of CntrFS gets the space that a filesystem reserves for root, whoever runs the server."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import loops
from testkit.servers import missing, open_to_others, served

from .actors import Actor

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
MIB = 1 << 20
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
