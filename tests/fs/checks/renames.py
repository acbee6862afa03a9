"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .. import syscalls
from ..actors import USER
from ._tools import (
    NO_SUCH_OPERATION,
    child,
    equal,
    finished,
    make,
    make_directory,
    names,
    opened,
    raises,
    tick,
    unsupported_if,
)


def check_moves_and_replaces(here: Path) -> None:
    make(here / "a", b"a")
    make(here / "b", b"b")
    inode = os.stat(here / "a").st_ino
    os.rename(here / "a", here / "b")
    equal(names(here), {"b"})
    equal((here / "b").read_bytes(), b"a")
    equal(os.stat(here / "b").st_ino, inode, "the inode moves with the name")


def check_replaced_file_stays_open(here: Path) -> None:
    make(here / "new", b"new")
    make(here / "old", b"old")
    with opened(here / "old", os.O_RDWR) as fd:
        os.rename(here / "new", here / "old")
        equal(os.fstat(fd).st_nlink, 0)
        equal(os.pread(fd, 10, 0), b"old")
        os.pwrite(fd, b"still", 0)
        equal(os.pread(fd, 10, 0), b"still")
    equal((here / "old").read_bytes(), b"new")


def check_open_file_moves(here: Path) -> None:
    make(here / "a", b"data")
    make_directory(here / "d")
    with opened(here / "a", os.O_RDWR) as fd:
        os.rename(here / "a", here / "d" / "b")
        make(here / "a", b"impostor")
        os.pwrite(fd, b"DATA", 0)
        os.fchmod(fd, 0o606)
        os.ftruncate(fd, 3)
        equal(os.fstat(fd).st_size, 3)
    equal((here / "d" / "b").read_bytes(), b"DAT")
    equal((here / "a").read_bytes(), b"impostor")


def check_directories(here: Path) -> None:
    for name in ("empty", "full/below", "source"):
        os.makedirs(here / name)
    make(here / "file")
    raises((errno.ENOTEMPTY, errno.EEXIST), os.rename, here / "source", here / "full")
    raises(errno.ENOTDIR, os.rename, here / "source", here / "file")
    raises(errno.EISDIR, os.rename, here / "file", here / "empty")
    os.rename(here / "source", here / "empty")
    raises(errno.EINVAL, os.rename, here / "full", here / "full" / "below" / "x")
    raises((errno.ENOTEMPTY, errno.EEXIST), os.rename, here / "full" / "below", here / "full")
    raises(errno.ENOENT, os.rename, here / "missing", here / "x")
    equal(names(here), {"empty", "full", "file"})


def check_onto_itself_and_hard_link(here: Path) -> None:
    make(here / "a", b"x")
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "a")
    os.rename(here / "a", here / "b")
    equal(names(here), {"a", "b"}, "two names of one inode: rename does nothing")


def check_parent_moves_with_its_children(here: Path) -> None:
    """Inodes that are paths fail here: everything below an already known directory moves."""
    os.makedirs(here / "a" / "b" / "c")
    make(here / "a" / "b" / "c" / "f", b"deep")
    os.stat(here / "a" / "b" / "c" / "f")
    with (
        opened(here / "a" / "b" / "c" / "f", os.O_RDWR) as file,
        opened(here / "a" / "b", os.O_RDONLY | os.O_DIRECTORY) as directory,
    ):
        os.rename(here / "a", here / "z")
        equal((here / "z" / "b" / "c" / "f").read_bytes(), b"deep")
        os.fchmod(file, 0o604)
        equal(os.stat("c/f", dir_fd=directory).st_mode & 0o777, 0o604)
        os.rename("c", "k", src_dir_fd=directory, dst_dir_fd=directory)
        os.close(os.open("k/new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory))
    equal(names(here / "z" / "b" / "k"), {"f", "new"})
    os.unlink(here / "z" / "b" / "k" / "f")
    raises(errno.ENOENT, os.stat, here / "a")


def check_old_directory_name_taken_again(here: Path) -> None:
    os.makedirs(here / "a" / "sub")
    make(here / "a" / "sub" / "f", b"old")
    os.rename(here / "a", here / "b")
    os.makedirs(here / "a" / "sub")
    make(here / "a" / "sub" / "f", b"new")
    equal((here / "b" / "sub" / "f").read_bytes(), b"old")
    equal((here / "a" / "sub" / "f").read_bytes(), b"new")
    os.unlink(here / "b" / "sub" / "f")
    equal((here / "a" / "sub" / "f").read_bytes(), b"new")


def check_dotdot_follows_a_moved_directory(here: Path) -> None:
    os.makedirs(here / "from" / "d")
    make_directory(here / "to")
    with opened(here / "from" / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(here / "from" / "d", here / "to" / "d")
        equal(os.stat("..", dir_fd=fd).st_ino, os.stat(here / "to").st_ino)
        listed = {entry.name: entry.ino for entry in syscalls.read_directory(here / "to" / "d")}
        equal(listed[b".."], os.stat(here / "to").st_ino, "`..` in the listing")


def check_link_counts_of_parents(here: Path) -> None:
    os.makedirs(here / "from" / "d")
    make_directory(here / "to")
    one, two = os.stat(here / "from").st_nlink, os.stat(here / "to").st_nlink
    os.rename(here / "from" / "d", here / "to" / "d")
    if one != 1:
        equal((os.stat(here / "from").st_nlink, os.stat(here / "to").st_nlink), (one - 1, two + 1))


def check_ctime_changes(here: Path) -> None:
    make(here / "a")
    before = os.stat(here / "a").st_ctime_ns
    mtime = os.stat(here / "a").st_mtime_ns
    tick()
    os.rename(here / "a", here / "b")
    assert os.stat(here / "b").st_ctime_ns > before, "rename does not change ctime"
    equal(os.stat(here / "b").st_mtime_ns, mtime, "mtime")


def check_symlinks_are_moved_not_followed(here: Path) -> None:
    make(here / "f", b"target")
    os.symlink("f", here / "l")
    os.rename(here / "l", here / "m")
    equal(os.readlink(here / "m"), "f")
    make(here / "g", b"new")
    os.rename(here / "g", here / "m")
    equal((here / "f").read_bytes(), b"target")
    equal((here / "m").read_bytes(), b"new")


def check_special_files(here: Path) -> None:
    os.mkfifo(here / "p")
    os.mknod(here / "s", stat.S_IFSOCK | 0o600)
    os.rename(here / "p", here / "q")
    os.rename(here / "q", here / "s")
    assert stat.S_ISFIFO(os.lstat(here / "s").st_mode)


def check_permissions(here: Path) -> None:
    closed = make_directory(here / "closed", 0o755)
    opened_up = make_directory(here / "open", 0o777)
    make(closed / "f")
    USER(lambda: make(opened_up / "g"))
    raises(errno.EACCES, USER, os.rename, closed / "f", opened_up / "f")
    raises(errno.EACCES, USER, os.rename, opened_up / "g", closed / "g")
    os.chmod(here, 0o777)
    os.rename(closed, here / "elsewhere")
    os.mkdir(here / "foreign", 0o755)
    raises(errno.EACCES, USER, os.rename, here / "foreign", opened_up / "taken")  # its `..` would have to change


def check_atomic_for_readers(here: Path) -> None:
    """While one process replaces a file by rename, a reader never finds it missing or partial."""
    make(here / "f", b"0" * 1000)

    def write() -> None:
        for number in range(200):
            make(here / "new", bytes([48 + number % 10]) * 1000)
            os.rename(here / "new", here / "f")

    pid = child(write)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        data = (here / "f").read_bytes()
        equal((len(data), len(set(data))), (1000, 1))


def check_noreplace(here: Path) -> None:
    make(here / "a", b"a")
    make(here / "b", b"b")
    raises(errno.EEXIST, _flagged, here / "a", here / "b", syscalls.RENAME_NOREPLACE)
    _flagged(here / "a", here / "c", syscalls.RENAME_NOREPLACE)
    equal(names(here), {"b", "c"})
    equal((here / "b").read_bytes(), b"b")


def check_exchange(here: Path) -> None:
    make(here / "f", b"file")
    os.makedirs(here / "d" / "below")
    make(here / "d" / "below" / "x", b"inside")
    with opened(here / "f", os.O_RDWR) as fd:
        _flagged(here / "f", here / "d", syscalls.RENAME_EXCHANGE)
        equal((here / "d").read_bytes(), b"file")
        equal((here / "f" / "below" / "x").read_bytes(), b"inside")
        os.pwrite(fd, b"FILE", 0)
    equal((here / "d").read_bytes(), b"FILE")
    raises(errno.ENOENT, _flagged, here / "f", here / "missing", syscalls.RENAME_EXCHANGE)


def check_exchange_across_directories(here: Path) -> None:
    for name in "ab":
        os.makedirs(here / name / "d")
        make(here / name / "d" / "f", name.encode())
    _flagged(here / "a" / "d", here / "b" / "d", syscalls.RENAME_EXCHANGE)
    equal((here / "a" / "d" / "f").read_bytes(), b"b")
    equal((here / "b" / "d" / "f").read_bytes(), b"a")
    equal(os.stat(here / "a" / "d" / "..").st_ino, os.stat(here / "a").st_ino)
    raises(errno.EINVAL, _flagged, here / "a", here / "a" / "d", syscalls.RENAME_EXCHANGE)


def check_whiteout(here: Path) -> None:
    """overlayfs needs it of its upper layer: a character device 0:0 is left in place."""
    make(here / "a", b"a")
    _flagged(here / "a", here / "b", syscalls.RENAME_WHITEOUT)
    found = os.lstat(here / "a")
    equal((stat.S_IFMT(found.st_mode), found.st_rdev), (stat.S_IFCHR, 0))
    equal((here / "b").read_bytes(), b"a")


def check_bad_flags(here: Path) -> None:
    make(here / "a")
    make(here / "b")
    both = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE
    raises(errno.EINVAL, syscalls.renameat2, here / "a", here / "b", both)
    raises(errno.EINVAL, syscalls.renameat2, here / "a", here / "b", 0x100)
    equal(names(here), {"a", "b"})


def check_cycle_of_directories_by_two_processes(here: Path) -> None:
    """a → b/a and b → a/b at the same time must never make a loop or hang."""
    for _ in range(20):
        os.mkdir(here / "a")
        os.mkdir(here / "b")

        def move(source: str, target: str) -> None:
            try:
                os.rename(here / source, here / target)
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.EINVAL), error

        one = child(lambda: move("a", "b/a"))
        two = child(lambda: move("b", "a/b"))
        finished(one)
        finished(two)
        equal(len(names(here)), 1)
        top = names(here).pop()
        os.rmdir(here / top / ("b" if top == "a" else "a"))
        os.rmdir(here / top)


def check_many_moves_keep_one_inode(here: Path) -> None:
    make(here / "0", b"travels")
    inode = os.stat(here / "0").st_ino
    for number in range(100):
        os.rename(here / f"{number}", here / f"{number + 1}")
        equal(os.stat(here / f"{number + 1}").st_ino, inode)
    equal((here / "100").read_bytes(), b"travels")


def _flagged(old: Path, new: Path, flags: int) -> None:
    """renameat2; EINVAL on the plain directory means that the backing filesystem lacks the flag."""
    unsupported_if(NO_SUCH_OPERATION, "renameat2 flags", syscalls.renameat2, old, new, flags)
