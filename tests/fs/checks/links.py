"""Hard links and symbolic links."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .. import syscalls
from ..actors import GID, UID, USER
from ._tools import PAST_NS, equal, equal_mode, make, make_directory, opened, raises, tick, touch_past


def check_hard_link_is_the_same_file(here: Path) -> None:
    make(here / "a", b"one", 0o640)
    os.link(here / "a", here / "b")
    make_directory(here / "d")
    os.link(here / "b", here / "d" / "c")
    first, second = os.stat(here / "a"), os.stat(here / "d" / "c")
    equal((first.st_dev, first.st_ino), (second.st_dev, second.st_ino))
    equal((first.st_nlink, second.st_nlink), (3, 3))
    (here / "b").write_bytes(b"two!")
    equal((here / "d" / "c").read_bytes(), b"two!")
    os.chmod(here / "a", 0o600)
    equal_mode(here / "d" / "c", 0o600)


def check_link_count_everywhere_at_once(here: Path) -> None:
    """The link count is the inode's: every name shows a change made through any other."""
    make(here / "a")
    os.link(here / "a", here / "b")
    for name in "ab":
        equal(os.stat(here / name).st_nlink, 2, name)
    with opened(here / "b") as fd:
        os.unlink(here / "a")
        equal(os.fstat(fd).st_nlink, 1)
        os.unlink(here / "b")
        equal(os.fstat(fd).st_nlink, 0)


def check_file_lives_under_its_other_name(here: Path) -> None:
    make(here / "a", b"kept")
    os.link(here / "a", here / "b")
    os.unlink(here / "a")
    equal((here / "b").read_bytes(), b"kept")
    with opened(here / "b", os.O_RDWR) as fd:
        os.pwrite(fd, b"KEPT", 0)
        os.fchmod(fd, 0o606)
    equal((here / "b").read_bytes(), b"KEPT")
    equal_mode(here / "b", 0o606)


def check_first_name_taken_by_another_file(here: Path) -> None:
    """A server that finds inodes by their first path would serve the wrong file."""
    make(here / "a", b"original")
    os.link(here / "a", here / "b")
    os.stat(here / "b")
    os.rename(here / "a", here / "moved")
    os.unlink(here / "moved")
    make(here / "a", b"impostor")
    equal((here / "b").read_bytes(), b"original")
    os.chmod(here / "b", 0o604)
    equal_mode(here / "b", 0o604)
    equal_mode(here / "a", 0o644)
    assert os.stat(here / "a").st_ino != os.stat(here / "b").st_ino


def check_ctime_of_link_and_unlink(here: Path) -> None:
    make(here / "a")
    before = os.stat(here / "a").st_ctime_ns
    tick()
    os.link(here / "a", here / "b")
    between = os.stat(here / "a").st_ctime_ns
    assert between > before, "link does not change ctime"
    tick()
    os.unlink(here / "b")
    assert os.stat(here / "a").st_ctime_ns > between, "unlink does not change ctime"


def check_link_errors(here: Path) -> None:
    make(here / "a")
    make_directory(here / "d")
    raises(errno.EPERM, os.link, here / "d", here / "e")
    raises(errno.EEXIST, os.link, here / "a", here / "d")
    raises(errno.EEXIST, os.link, here / "a", here / "a")
    raises(errno.ENOENT, os.link, here / "missing", here / "b")
    raises(errno.ENOENT, os.link, here / "a", here / "missing" / "b")
    raises(errno.ENOTDIR, os.link, here / "a", here / "a" / "b")


def check_hard_link_to_symlink(here: Path) -> None:
    os.symlink("nowhere", here / "s")
    os.link(here / "s", here / "t", follow_symlinks=False)
    equal(os.readlink(here / "t"), "nowhere")
    equal(os.lstat(here / "s").st_nlink, 2)


def check_hard_links_to_special_files(here: Path) -> None:
    os.mkfifo(here / "p")
    os.mknod(here / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    for name in "pn":
        os.link(here / name, here / (name + "2"))
        equal(os.lstat(here / name).st_ino, os.lstat(here / (name + "2")).st_ino)
        equal(os.lstat(here / name).st_nlink, 2)


def check_link_by_fd(here: Path) -> None:
    """linkat(AT_EMPTY_PATH) and /proc/self/fd link the open file, not the path it was opened by."""
    make(here / "a", b"open")
    with opened(here / "a") as fd:
        os.rename(here / "a", here / "b")
        make(here / "a", b"other")
        syscalls.linkat(fd, "", syscalls.AT_FDCWD, here / "c", syscalls.AT_EMPTY_PATH)
        syscalls.link_fd(fd, here / "d")
    equal((here / "c").read_bytes(), b"open")
    equal((here / "d").read_bytes(), b"open")


def check_link_of_unlinked_file_fails(here: Path) -> None:
    make(here / "a")
    with opened(here / "a") as fd:
        os.unlink(here / "a")
        raises(errno.ENOENT, syscalls.link_fd, fd, here / "b")
    equal(os.listdir(here), [])


def check_two_hundred_links(here: Path) -> None:
    make(here / "0")
    for number in range(1, 200):
        os.link(here / "0", here / f"{number}")
    equal(os.stat(here / "77").st_nlink, 200)
    inodes = {entry.ino for entry in syscalls.read_directory(here) if entry.name not in (b".", b"..")}
    equal(len(inodes), 1, "inodes in the listing")
    for number in range(199):
        os.unlink(here / f"{number}")
    equal(os.stat(here / "199").st_nlink, 1)


def check_symlink_text_is_kept(here: Path) -> None:
    for number, text in enumerate((b"x", b"../..", b"/absolute", b"\xff\xfe \n", b"a//b/", b"t" * 4095)):
        path = os.fsencode(here) + b"/%d" % number
        os.symlink(text, path)
        equal(os.readlink(path), text)
        equal(os.lstat(path).st_size, len(text), "size of the symlink")
    raises(errno.ENAMETOOLONG, os.symlink, b"t" * 4096, os.fsencode(here) + b"/long")
    raises(errno.ENOENT, os.symlink, b"", os.fsencode(here) + b"/empty")


def check_symlink_is_not_followed_by_its_own_calls(here: Path) -> None:
    make(here / "target", mode=0o640)
    os.symlink("target", here / "link")
    os.lchown(here / "link", UID, GID)
    equal((os.lstat(here / "link").st_uid, os.stat(here / "target").st_uid), (UID, 0))
    os.utime(here / "link", ns=(PAST_NS, PAST_NS + 1), follow_symlinks=False)
    found = os.lstat(here / "link")
    equal(found.st_mtime_ns, PAST_NS + 1)
    assert os.stat(here / "target").st_mtime_ns != PAST_NS + 1
    os.chmod(here / "link", 0o600)
    equal_mode(here / "target", 0o600)
    equal_mode(here / "link", 0o777)
    raises(errno.EINVAL, os.readlink, here / "target")


def check_symlink_resolution(here: Path) -> None:
    os.makedirs(here / "a" / "b")
    make(here / "a" / "f", b"through")
    os.symlink("../f", here / "a" / "b" / "up")
    os.symlink("a/b", here / "into")
    os.symlink(str(here / "a"), here / "absolute")
    equal((here / "into" / "up").read_bytes(), b"through")
    equal((here / "absolute" / "b" / "up").read_bytes(), b"through")
    os.rename(here / "a", here / "c")
    raises(errno.ENOENT, os.stat, here / "into")


def check_symlink_loops(here: Path) -> None:
    os.symlink("b", here / "a")
    os.symlink("a", here / "b")
    os.symlink("self", here / "self")
    for name in ("a", "self"):
        raises(errno.ELOOP, os.stat, here / name)
        raises(errno.ELOOP, os.open, here / name, os.O_RDONLY)
        raises(errno.ELOOP, os.chmod, here / name, 0o600)
        raises(errno.ELOOP, os.mkdir, here / name / "x")
        os.unlink(here / name)


def check_symlink_chain_of_forty(here: Path) -> None:
    make(here / "0", b"end")
    for number in range(1, 42):
        os.symlink(f"{number - 1}", here / f"{number}")
    equal((here / "40").read_bytes(), b"end")
    raises(errno.ELOOP, os.stat, here / "41")


def check_symlink_replaced(here: Path) -> None:
    """A cached link target must not survive unlink and symlink of the same name."""
    for number in range(20):
        make(here / f"target{number}", f"{number}".encode())
        os.symlink(f"target{number}", here / "new")
        os.rename(here / "new", here / "current")
        equal(os.readlink(here / "current"), f"target{number}")
        equal((here / "current").read_bytes(), f"{number}".encode())


def check_readlink_keeps_mtime(here: Path) -> None:
    os.symlink("x", here / "link")
    touch_past(here / "link")
    os.readlink(here / "link")
    equal(os.lstat(here / "link").st_mtime_ns, PAST_NS)


def check_directory_symlink_permissions(here: Path) -> None:
    """A symlink's own mode grants nothing: the target's mode counts."""
    secret = make_directory(here / "secret", 0o700)
    make(secret / "f")
    os.symlink("secret/f", here / "way-in")
    raises(errno.EACCES, USER, os.stat, here / "way-in")
    equal(USER(os.readlink, here / "way-in"), "secret/f")
