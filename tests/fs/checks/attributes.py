"""stat, chmod, chown, times, access, statfs: attributes, and who may change them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .. import syscalls
from ..actors import GID, GROUPS, OTHER, UID, USER, Actor
from ._tools import (
    FUTURE_NS,
    PAST_NS,
    Unsupported,
    equal,
    equal_mode,
    make,
    make_directory,
    opened,
    permissions,
    raises,
    tick,
)


def check_chmod_every_bit(here: Path) -> None:
    make(here / "f")
    make_directory(here / "d")
    os.mkfifo(here / "p")
    for name in "fdp":
        for mode in [1 << bit for bit in range(12)] + [0, 0o7777]:
            os.chmod(here / name, mode)
            equal_mode(here / name, mode)
    with opened(here / "f") as fd:
        os.fchmod(fd, 0o421)
        equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o421)


def check_chmod_takes_effect_at_once(here: Path) -> None:
    """Permission checks with cached attributes must notice a chmod."""
    make(here / "f", b"x")
    for _ in range(5):
        os.chmod(here / "f", 0o644)
        equal(USER(lambda: (here / "f").read_bytes()), b"x")
        os.chmod(here / "f", 0o600)
        raises(errno.EACCES, USER, os.open, here / "f", os.O_RDONLY)
    make_directory(here / "d", 0o700)
    make(here / "d" / "f")
    raises(errno.EACCES, USER, os.stat, here / "d" / "f")
    os.chmod(here / "d", 0o755)
    USER(os.stat, here / "d" / "f")


def check_chmod_is_for_the_owner(here: Path) -> None:
    make(here / "f", mode=0o666)
    raises(errno.EPERM, USER, os.chmod, here / "f", 0o777)
    os.chown(here / "f", UID, GID)
    USER(os.chmod, here / "f", 0o604)
    equal_mode(here / "f", 0o604)
    raises(errno.EPERM, OTHER, os.chmod, here / "f", 0o777)


def check_chmod_setgid_needs_membership(here: Path) -> None:
    make(here / "f")
    os.chown(here / "f", UID, 29999)
    USER(os.chmod, here / "f", 0o2755)
    equal_mode(here / "f", 0o755)
    os.chown(here / "f", UID, GROUPS[1])
    USER(os.chmod, here / "f", 0o2755)
    equal_mode(here / "f", 0o2755)


def check_chown(here: Path) -> None:
    make(here / "f")
    os.chown(here / "f", 123456, 654321)
    found = os.stat(here / "f")
    equal((found.st_uid, found.st_gid), (123456, 654321))
    os.chown(here / "f", -1, 5)
    os.chown(here / "f", 6, -1)
    found = os.stat(here / "f")
    equal((found.st_uid, found.st_gid), (6, 5))
    os.chown(here / "f", 0xFFFFFFFE, 0xFFFFFFFE)
    equal(os.stat(here / "f").st_uid, 0xFFFFFFFE)


def check_chown_by_the_owner(here: Path) -> None:
    """The owner may give the file to one of their own groups only, and to no other user."""
    make(here / "f")
    os.chown(here / "f", UID, GID)
    for group in (*GROUPS, GID):
        USER(os.chown, here / "f", -1, group)
        equal(os.stat(here / "f").st_gid, group)
    raises(errno.EPERM, USER, os.chown, here / "f", -1, 29999)
    raises(errno.EPERM, USER, os.chown, here / "f", OTHER.uid, -1)
    raises(errno.EPERM, OTHER, os.chown, here / "f", -1, OTHER.gid)
    USER(os.chown, here / "f", -1, -1)


def check_chown_clears_suid(here: Path) -> None:
    make(here / "f", mode=0o6755)
    os.chown(here / "f", UID, GID)
    equal_mode(here / "f", 0o755)
    os.chmod(here / "f", 0o6755)
    USER(os.chown, here / "f", -1, GROUPS[0])
    equal_mode(here / "f", 0o755)
    make_directory(here / "d", 0o6755)
    os.chown(here / "d", UID, GID)
    equal_mode(here / "d", 0o6755)


def check_chown_keeps_setgid_without_group_execute(here: Path) -> None:
    """S_ISGID without S_IXGRP meant mandatory locking, not a privilege: it is kept (inode.c,
    setattr_should_drop_sgid).
    """
    make(here / "f", mode=0o2644)
    os.chown(here / "f", 5, 5)
    equal_mode(here / "f", 0o2644)


def check_write_by_another_clears_suid(here: Path) -> None:
    for number, way in enumerate((os.write, lambda fd, data: os.pwrite(fd, data, 100), None)):
        path = make(here / f"f{number}", b"program", 0o6777)

        def change(path: Path = path, way: object = way) -> None:
            with opened(path, os.O_WRONLY) as fd:
                if callable(way):
                    way(fd, b"x")
                else:
                    os.ftruncate(fd, 3)

        USER(change)
        equal_mode(path, 0o777)


def check_truncate_by_another_clears_suid(here: Path) -> None:
    for number, way in enumerate(("truncate", "O_TRUNC")):
        path = make(here / f"f{number}", b"program", 0o6777)
        if way == "truncate":
            USER(os.truncate, path, 3)
        else:
            USER(lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
        equal_mode(path, 0o777)


def check_mapped_or_appended_write_clears_suid(here: Path) -> None:
    path = make(here / "f", b"program", 0o6777)

    def append() -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"more")

    USER(append)
    equal_mode(path, 0o777)
    equal(path.read_bytes(), b"programmore")


def check_suid_is_gone_at_the_backing_file_too(here: Path, behind: Path) -> None:
    path = make(here / "f", b"program", 0o6777)

    def change() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"x")

    USER(change)
    equal_mode(behind / "f", 0o777)


def check_setgid_stays_without_group_execute(here: Path) -> None:
    path = make(here / "f", b"data", 0o2666)
    os.chown(path, UID, GID)
    os.chmod(path, 0o2666)
    USER(lambda: path.write_bytes(b"by its owner and member"))
    equal_mode(path, 0o2666)


def check_root_keeps_suid_when_writing(here: Path) -> None:
    path = make(here / "f", b"program", 0o6755)
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
    equal_mode(path, 0o6755)


def check_root_without_fsetid_does_not(here: Path) -> None:
    path = make(here / "f", b"program", 0o6755)
    lessened = Actor("root without CAP_FSETID", dropped_capabilities=(syscalls.CAP_FSETID,))

    def change() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"x")

    lessened(change)
    equal_mode(path, 0o755)


def check_chmod_with_fsetid_keeps_setgid(here: Path) -> None:
    make(here / "f")
    os.chown(here / "f", UID, 29999)
    os.chmod(here / "f", 0o2755)
    equal_mode(here / "f", 0o2755)


def check_times_to_the_nanosecond(here: Path) -> None:
    make(here / "f")
    make_directory(here / "d")
    os.mkfifo(here / "p")
    for name in "fdp":
        for atime, mtime in ((PAST_NS, FUTURE_NS), (1, 2), (FUTURE_NS, PAST_NS), (0, 999_999_999)):
            os.utime(here / name, ns=(atime, mtime))
            found = os.stat(here / name)
            equal((found.st_atime_ns, found.st_mtime_ns), (atime, mtime), name)


def check_times_before_1970_and_after_2038(here: Path) -> None:
    make(here / "f")
    for seconds in (-1, -(2**31) + 1, 2**31, 2**32 + 5, 15032385535):
        os.utime(here / "f", ns=(seconds * 10**9, seconds * 10**9))
        found = os.stat(here / "f")
        if found.st_mtime_ns != seconds * 10**9 and abs(seconds) > 2**31:
            raise Unsupported(f"timestamps at {seconds} s")
        equal((found.st_atime_ns, found.st_mtime_ns), (seconds * 10**9,) * 2)


def check_times_before_1970_with_fraction(here: Path) -> None:
    make(here / "f")
    os.utime(here / "f", ns=(-1_500_000_000, -1))
    found = os.stat(here / "f")
    equal((found.st_atime_ns, found.st_mtime_ns), (-1_500_000_000, -1))


def check_time_now_and_omit(here: Path) -> None:
    import time

    make(here / "f")
    os.utime(here / "f", ns=(PAST_NS, PAST_NS))
    before = time.time_ns() - 20_000_000  # the kernel's coarse clock lags behind
    syscalls.utimensat(here / "f", (0, syscalls.UTIME_OMIT), (0, syscalls.UTIME_NOW))
    found = os.stat(here / "f")
    equal(found.st_atime_ns, PAST_NS)
    assert before <= found.st_mtime_ns <= time.time_ns()
    syscalls.utimensat(here / "f", (7, 8), (0, syscalls.UTIME_OMIT))
    equal((os.stat(here / "f").st_atime_ns, os.stat(here / "f").st_mtime_ns), (7_000_000_008, found.st_mtime_ns))
    ctime = os.stat(here / "f").st_ctime_ns
    tick()
    syscalls.utimensat(here / "f", (0, syscalls.UTIME_OMIT), (0, syscalls.UTIME_OMIT))
    equal(os.stat(here / "f").st_ctime_ns, ctime, "two UTIME_OMIT change nothing")


def check_who_may_set_times(here: Path) -> None:
    """Setting both to now needs write permission; other times, or only one of the two, needs ownership."""
    make(here / "f", mode=0o666)
    USER(os.utime, here / "f")
    raises(errno.EPERM, USER, os.utime, here / "f", (1, 1))
    raises(errno.EPERM, USER, syscalls.utimensat, here / "f", (0, syscalls.UTIME_NOW), (0, syscalls.UTIME_OMIT))
    os.chmod(here / "f", 0o644)
    raises(errno.EACCES, USER, os.utime, here / "f")
    os.chown(here / "f", UID, GID)
    os.chmod(here / "f", 0o400)
    USER(os.utime, here / "f", (1, 1))
    USER(os.utime, here / "f")


def check_what_moves_which_time(here: Path) -> None:
    path = make(here / "f", b"x" * 100)

    def moved(action: object) -> str:
        os.utime(path, ns=(PAST_NS, PAST_NS))
        before = os.stat(path)
        tick()
        assert callable(action)
        action()
        after = os.stat(path)
        return ("m" if after.st_mtime_ns != before.st_mtime_ns else "") + (
            "c" if after.st_ctime_ns != before.st_ctime_ns else ""
        )

    def write() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"y")

    equal(moved(write), "mc", "write")
    equal(moved(lambda: os.truncate(path, 50)), "mc", "truncate")
    equal(moved(lambda: os.truncate(path, 50)), "mc", "truncate to the same size")
    equal(moved(lambda: os.chmod(path, 0o600)), "c", "chmod")
    equal(moved(lambda: os.chown(path, 1, 1)), "c", "chown")
    equal(moved(lambda: os.link(path, here / "l")), "c", "link")
    equal(moved(lambda: os.setxattr(path, "user.a", b"1")), "c", "setxattr")
    equal(moved(path.read_bytes), "", "read")
    equal(moved(lambda: os.stat(path)), "", "stat")
    equal(moved(lambda: path.open("ab").close()), "", "open for append and close")
    equal(moved(lambda: path.open("wb").close()), "mc", "O_TRUNC")


def check_times_set_survive_close(here: Path) -> None:
    """tar sets the times and then closes the file: a late flush must not set them to now."""
    with opened(here / "f", os.O_CREAT | os.O_RDWR, 0o644) as fd:
        os.write(fd, b"x" * 100000)
        os.utime(fd, ns=(PAST_NS, PAST_NS + 1))
    equal(os.stat(here / "f").st_mtime_ns, PAST_NS + 1)
    with opened(here / "f") as fd:
        os.fsync(fd)
    equal(os.stat(here / "f").st_mtime_ns, PAST_NS + 1)


def check_inode_number_is_stable(here: Path) -> None:
    make(here / "f")
    inode = os.stat(here / "f").st_ino
    make_directory(here / "d")
    os.rename(here / "f", here / "d" / "g")
    os.link(here / "d" / "g", here / "h")
    with opened(here / "h") as fd:
        equal(os.fstat(fd).st_ino, inode)
    equal(os.stat(here / "d" / "g").st_ino, inode)


def check_inode_number_is_the_backing_one(here: Path, behind: Path) -> None:
    make(here / "f")
    equal(os.stat(here / "f").st_ino, os.stat(behind / "f").st_ino)


def check_one_device_number(here: Path) -> None:
    make(here / "f")
    make_directory(here / "d")
    equal({os.lstat(path).st_dev for path in (here, here / "f", here / "d")}, {os.stat(here).st_dev})


def check_blocks_of_sparse_and_dense(here: Path) -> None:
    with opened(here / "sparse", os.O_CREAT | os.O_RDWR, 0o600) as fd:
        os.ftruncate(fd, 10 << 20)
        assert os.fstat(fd).st_blocks < 64, "a hole takes no blocks"
    make(here / "dense", b"x" * (1 << 20))
    with opened(here / "dense") as fd:
        os.fsync(fd)
        assert 2048 <= os.fstat(fd).st_blocks <= 2300, os.fstat(fd).st_blocks
    assert os.stat(here / "dense").st_blksize >= 512


def check_blocks_equal_the_backing_ones(here: Path, behind: Path) -> None:
    make(here / "f", b"x" * 300000)
    os.sync()
    with opened(here / "f") as fd:
        os.fsync(fd)
    equal(os.stat(here / "f").st_blocks, os.stat(behind / "f").st_blocks)


def check_statx_birth_time(here: Path) -> None:
    import time

    before = time.time_ns() - 20_000_000
    make(here / "f")
    found = syscalls.statx(here / "f")
    if not found.mask & syscalls.STATX_BTIME:
        raise Unsupported("a birth time")
    assert before <= found.btime_ns <= time.time_ns()
    os.utime(here / "f", ns=(PAST_NS, PAST_NS))
    equal(syscalls.statx(here / "f").btime_ns, found.btime_ns, "birth time after utimensat")


def check_statx_mount_id(here: Path) -> None:
    make(here / "f")
    found = syscalls.statx(here / "f")
    assert found.mask & syscalls.STATX_MNT_ID
    with open("/proc/self/mountinfo") as mounts:
        assert any(line.startswith(f"{found.mnt_id} ") for line in mounts), "the mount id is in mountinfo"


def check_statfs(here: Path, behind: Path) -> None:
    mine, below = os.statvfs(here), os.statvfs(behind)
    equal((mine.f_blocks, mine.f_frsize, mine.f_files), (below.f_blocks, below.f_frsize, below.f_files))
    equal(mine.f_namemax, below.f_namemax)
    assert abs(mine.f_bavail - below.f_bavail) * mine.f_frsize < 1 << 30


def check_access_asks_for_the_real_user(here: Path) -> None:
    make(here / "f", mode=0o640)
    os.chown(here / "f", 0, GROUPS[0])
    assert USER(os.access, here / "f", os.R_OK)
    assert not USER(os.access, here / "f", os.W_OK)
    assert not OTHER(os.access, here / "f", os.R_OK)
    assert OTHER(os.access, here / "f", os.F_OK)
    assert os.access(here / "f", os.R_OK | os.W_OK)
    assert not os.access(here / "f", os.X_OK), "root may execute only what somebody may"

    def mixed() -> bool:
        os.setresuid(UID, 0, 0)
        syscalls.faccessat(here / "f", os.W_OK, syscalls.AT_EACCESS)  # glibc before 2.33 uses the real uid here, too
        return os.access(here / "f", os.W_OK)

    assert not Actor("real user, effective root")(mixed)


def check_owner_permissions_come_first(here: Path) -> None:
    """The owner bits apply to the owner, even if the group or other bits would grant more."""
    make(here / "f", mode=0o077)
    os.chown(here / "f", UID, GROUPS[0])
    raises(errno.EACCES, USER, os.open, here / "f", os.O_RDONLY)
    os.chown(here / "f", 0, GROUPS[0])
    os.chmod(here / "f", 0o707)
    raises(errno.EACCES, USER, os.open, here / "f", os.O_RDONLY)
    OTHER(lambda: os.close(os.open(here / "f", os.O_RDONLY)))


def check_attributes_through_other_names_agree(here: Path) -> None:
    make(here / "a", b"x" * 10)
    os.link(here / "a", here / "b")
    os.stat(here / "a")
    os.stat(here / "b")
    os.chmod(here / "a", 0o611)
    os.truncate(here / "b", 5)
    os.utime(here / "a", ns=(PAST_NS, PAST_NS))
    one, two = os.stat(here / "a"), os.stat(here / "b")
    equal(one, two)
    equal((one.st_size, permissions(here / "b")), (5, 0o611))
