"""A failed write to the disk is reported to every process that has the file open, by its next fsync(2)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import loops
from testkit.servers import missing, served

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: mounting needs it")
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 that takes itself for 128 MiB, of which only 16 exist."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is missing (Debian: e2fsprogs)")
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "memory", tmp_path / "memory"], check=True)
    try:
        image = tmp_path / "memory" / "image"
        image.touch()
        os.truncate(image, 128 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        with loops.mounted(image, tmp_path / "disk", "loop,errors=continue") as disk:
            for name in ("source", "mount"):
                (disk / name).mkdir()
            yield disk
    finally:
        # The loop device releases its file once it has given up writing to it.
        subprocess.run(["umount", "--lazy", tmp_path / "memory"], check=True)


def _synced(fd: int) -> bool:
    try:
        os.fsync(fd)
    except OSError as error:
        assert error.errno in (errno.EIO, errno.ENOSPC)
        return False
    return True


@pytest.mark.parametrize("place", ["plain", "devfuse", "pyfuse3"])
def test_each_open_file_gets_the_error(place: str, disk: Path) -> None:
    """Also if the error was already reported to another one: a database's checkpoint relies on that."""
    if place == "plain":
        _write_too_much(disk / "source")
        return
    if missing(place):
        pytest.skip(missing(place))
    with served(place, disk) as mount:
        _write_too_much(mount)


def _write_too_much(here: Path) -> None:
    writer, other = (os.open(here / "file", os.O_CREAT | os.O_RDWR) for _ in range(2))
    try:
        pid = os.fork()
        if not pid:
            os._exit(0)  # which closes both, as a database's child process does
        os.waitpid(pid, 0)
        for number in range(32):
            os.pwrite(writer, os.urandom(MIB), number * MIB)
        assert not _synced(other)
        for _ in range(5):  # an error in the filesystem's own metadata is reported to both, again
            if _synced(other):
                break
        assert not _synced(writer)
        late = os.open(here / "file", os.O_RDWR)
        assert _synced(late)
        os.close(late)
    finally:
        os.close(writer)
        os.close(other)
