"""Quotas of the backing filesystem: a user of the mount gets no more than without it. Needs a kernel with quotas."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from testkit.servers import Server, missing, open_to_others

from .actors import UID, USER
from .test_backings import MIB, _unmount

#: (options of mount(8), what makes the filesystem, what sets the limit of a megabyte, the kernel's name of it)
KINDS = {
    "tmpfs": (f"usrquota,usrquota_block_hardlimit={MIB}", (), (), "CONFIG_TMPFS_QUOTA"),
    "ext4": (
        "loop,usrquota",
        ("mkfs.ext4", "-q", "-O", "quota"),
        ("setquota", "-u", str(UID), "0", "1024", "0", "0"),
        "CONFIG_QFMT_V2",
    ),
    "btrfs": (
        "loop",
        ("mkfs.btrfs", "-q"),
        ("sh", "-c", 'btrfs quota enable "$1" && btrfs qgroup limit 2M 0/5 "$1"', "sh"),
        "CONFIG_BTRFS_FS",
    ),
    "xfs": (
        "loop,uquota",
        ("mkfs.xfs", "-q"),
        ("xfs_quota", "-x", "-c", f"limit bhard=1m {UID}"),
        "CONFIG_XFS_QUOTA",
    ),
}


def _mounted(kind: str, base: Path) -> Path:
    """The filesystem, with its limit."""
    options, make, limit, config = KINDS[kind]
    disk, source = base / "disk", kind
    disk.mkdir()
    for program in (make[:1], limit[:1]):
        if program and shutil.which(program[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            pytest.skip(f"{program[0]} is missing (Debian: quota, e2fsprogs, xfsprogs, btrfs-progs)")
    if make:
        source = str(base / "image")
        with open(source, "wb") as image:
            image.truncate(400 * MIB)
        subprocess.run([*make, source], check=True, capture_output=True)
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, source, disk], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the kernel has no quotas on {kind} ({config}): {done.stderr.strip().splitlines()[0]}")
    if limit:
        subprocess.run([*limit, disk], check=True, capture_output=True)
    return disk


def _spend(top: Path) -> tuple[str, int]:
    """Write until it is refused: the errno's name, and the number of bytes written."""
    written = 0
    with open(top / "spent", "wb", 0) as file:
        try:
            while written < 8 * MIB:
                written += os.write(file.fileno(), b"x" * 4096)
                os.fsync(file.fileno())
        except OSError as error:
            return errno.errorcode[error.errno or 0], written
    return "", written


@pytest.mark.parametrize("option", ["passthrough", "no_passthrough"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_users_quota(kind: str, option: str, tmp_path: Path) -> None:
    if missing("devfuse"):
        pytest.skip(missing("devfuse"))
    open_to_others(tmp_path)
    disk = _mounted(kind, tmp_path)
    server = Server("devfuse", disk, tmp_path / "mount", tmp_path / "log", options=("-o", option))
    (tmp_path / "mount").mkdir()
    try:
        (disk / "own").mkdir()
        os.chown(disk / "own", UID, UID)
        disk.chmod(0o755)
        native = USER(_spend, disk / "own")
        assert native[0] == "EDQUOT"
        (disk / "own" / "spent").unlink()
        os.sync()  # btrfs updates its free space at the next commit
        server.start()
        through = USER(_spend, tmp_path / "mount" / "own")
        assert through[0] == native[0]
        assert abs(through[1] - native[1]) <= MIB // 8
    finally:
        problem = server.stop()
        _unmount(disk)
    assert not problem
