"""Names and directories: which names are valid, and what a listing guarantees its reader."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .. import syscalls
from ..actors import OTHER, USER
from ._tools import child, equal, finished, make, make_directory, names, opened, raises


def check_name_max(here: Path) -> None:
    make(here / ("n" * 255), b"longest")
    equal((here / ("n" * 255)).read_bytes(), b"longest")
    for call in (os.mkdir, os.mkfifo, os.stat, os.unlink, os.rmdir, os.readlink):
        raises(errno.ENAMETOOLONG, call, here / ("n" * 256))
    raises(errno.ENAMETOOLONG, os.open, here / ("n" * 256), os.O_CREAT | os.O_WRONLY)
    raises(errno.ENAMETOOLONG, os.rename, here / ("n" * 255), here / ("m" * 256))
    raises(errno.ENAMETOOLONG, os.symlink, "x", here / ("n" * 256))
    equal(os.pathconf(here, "PC_NAME_MAX"), 255)


def check_every_byte_in_a_name(here: Path) -> None:
    base = os.fsencode(here)
    wanted = {b"n" + bytes([byte]) for byte in range(1, 256) if byte != ord("/")}
    for name in wanted:
        os.close(os.open(base + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    equal(set(os.listdir(base)), wanted)
    for name in wanted:
        os.unlink(base + b"/" + name)


def check_not_utf8(here: Path) -> None:
    base = os.fsencode(here) + b"/"
    os.mkdir(base + b"\xff\xfe\x80")
    os.symlink(b"\xc3\x28", base + b"\xff\xfe\x80/\xa0")
    os.rename(base + b"\xff\xfe\x80", base + b"\xed\xa0\x80")
    equal(os.readlink(base + b"\xed\xa0\x80/\xa0"), b"\xc3\x28")


def check_no_normalisation(here: Path) -> None:
    for name in ("\u00e9", "e\u0301", "A", "a", "trailing.", "trailing ", "-rf", "\n", "con", "a:b", "\\"):
        make(here / name)
    equal(len(names(here)), 11)


def check_path_of_4095_bytes(here: Path) -> None:
    length = 4095 - len(os.fsencode(here)) - 1
    parts = ["d" * 200] * (length // 201)
    rest = length - 201 * len(parts)
    path = here
    for part in parts:
        path = path / part
    os.makedirs(path)
    path = path / ("f" * rest) if rest else path
    equal(len(os.fsencode(path)), 4095)
    make(path, b"deep")
    equal(path.read_bytes(), b"deep")
    raises(errno.ENAMETOOLONG, os.stat, str(path) + "x")


def check_deeper_than_path_max(here: Path) -> None:
    """Reached one directory at a time: a server that builds paths fails here."""
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("f", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=fd)
    os.write(file, b"bottom")
    equal(os.pread(file, 10, 0), b"bottom")
    os.close(file)
    os.rename("f", "g", src_dir_fd=fd, dst_dir_fd=fd)
    equal(os.listdir(fd), ["g"])
    os.unlink("g", dir_fd=fd)
    os.close(fd)


def check_dot_and_dotdot(here: Path) -> None:
    directory = make_directory(here / "d")
    found = {entry.name: entry for entry in syscalls.read_directory(directory)}
    assert b"." in found, "no `.` in the listing"
    assert b".." in found, "no `..` in the listing"
    equal(found[b"."].ino, os.stat(directory).st_ino, "inode of `.`")
    equal(found[b".."].ino, os.stat(here).st_ino, "inode of `..`")
    equal((found[b"."].type, found[b".."].type), (4, 4), "d_type")
    equal(os.stat(directory / "..").st_ino, os.stat(here).st_ino)


def check_types_and_inodes_in_listing(here: Path) -> None:
    make(here / "file")
    os.mkdir(here / "directory")
    os.symlink("x", here / "symlink")
    os.mkfifo(here / "fifo")
    os.mknod(here / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(here / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.link(here / "file", here / "hardlink")
    for entry in syscalls.read_directory(here):
        if entry.name in (b".", b".."):
            continue
        found = os.lstat(os.fsencode(here) + b"/" + entry.name)
        equal(entry.ino, found.st_ino, f"d_ino of {entry.name!r}")
        equal(entry.type, stat.S_IFMT(found.st_mode) >> 12, f"d_type of {entry.name!r}")


def check_five_thousand_entries(here: Path) -> None:
    wanted = {f"entry-{number:05d}" for number in range(5000)}
    for name in wanted:
        os.close(os.open(here / name, os.O_CREAT | os.O_WRONLY, 0o600))
    for size in (32768, 4096, 256):
        listed = [os.fsdecode(entry.name) for entry in syscalls.read_directory(here, size)]
        equal(len(listed), 5002, f"entries in buffers of {size}")
        equal(set(listed) - {".", ".."}, wanted)
    for name in wanted:
        os.unlink(here / name)
    equal(names(here), set())
    os.rmdir(here)


def check_seek_in_directory(here: Path) -> None:
    """telldir/seekdir: an offset that was returned leads back to the entry after it."""
    for number in range(300):
        os.mkdir(here / f"entry-{number:03d}")
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as fd:
        listing = []
        while batch := syscalls.getdents(fd, 1024):
            listing += batch
        equal(len(listing), 302)
        for index in (0, 1, 2, 57, 150, 300):
            os.lseek(fd, listing[index].off, os.SEEK_SET)
            after = syscalls.getdents(fd, 1024)
            equal(after[0].name, listing[index + 1].name, f"after seek to entry {index}")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(syscalls.getdents(fd, 1024)[0].name, listing[0].name, "after rewind")


def check_rewind_sees_new_entries(here: Path) -> None:
    make(here / "old")
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as fd:
        while syscalls.getdents(fd):
            pass
        make(here / "new")
        os.unlink(here / "old")
        os.lseek(fd, 0, os.SEEK_SET)
        listed = {entry.name for entry in syscalls.getdents(fd)}
    assert b"new" in listed, "created after opendir, before rewinddir: must be seen"
    assert b"old" not in listed, "removed before rewinddir: must not be seen"


def check_removal_while_reading(here: Path) -> None:
    """rm -r alternates reading and removing: every entry is seen once, none is skipped."""
    for number in range(2000):
        os.close(os.open(here / f"entry-{number:05d}", os.O_CREAT | os.O_WRONLY, 0o600))
    seen: list[bytes] = []
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as fd:
        while batch := syscalls.getdents(fd, 2048):
            for entry in batch:
                if entry.name not in (b".", b".."):
                    seen.append(entry.name)
                    os.unlink(entry.name, dir_fd=fd)
    equal(len(seen), len(set(seen)), "an entry twice")
    equal(len(seen), 2000)
    equal(names(here), set())


def check_two_readers_of_one_directory(here: Path) -> None:
    for number in range(500):
        os.mkdir(here / f"{number}")
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as one, opened(here, os.O_RDONLY | os.O_DIRECTORY) as two:
        seen_one, seen_two = set(), set()
        while True:
            batch_one, batch_two = syscalls.getdents(one, 1024), syscalls.getdents(two, 4096)
            seen_one |= {entry.name for entry in batch_one}
            seen_two |= {entry.name for entry in batch_two}
            if not batch_one and not batch_two:
                break
    equal(len(seen_one), 502)
    equal(len(seen_two), 502)


def check_removed_working_directory(here: Path) -> None:
    def body() -> None:
        os.mkdir(here / "gone")
        os.chdir(here / "gone")
        os.rmdir(here / "gone")
        raises(errno.ENOENT, os.getcwd)
        raises(errno.ENOENT, os.open, "f", os.O_CREAT | os.O_WRONLY)
        raises(errno.ENOENT, os.mkdir, "d")
        raises(errno.ENOENT, os.symlink, "x", "s")
        raises(errno.ENOENT, os.stat, "f")
        equal(os.stat(".").st_nlink, 0, "nlink of the removed directory")
        assert set(os.listdir(".")) == set()

    finished(child(body))


def check_working_directory_renamed(here: Path) -> None:
    def body() -> None:
        os.makedirs(here / "a" / "b")
        os.chdir(here / "a" / "b")
        os.rename(here / "a", here / "z")
        equal(os.getcwd(), str(here / "z" / "b"))
        make(Path("f"), b"found")
        equal((here / "z" / "b" / "f").read_bytes(), b"found")
        equal(os.stat("..").st_ino, os.stat(here / "z").st_ino)

    finished(child(body))


def check_directory_fd_follows_rename(here: Path) -> None:
    make_directory(here / "a")
    make_directory(here / "elsewhere")
    with opened(here / "a", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(here / "a", here / "elsewhere" / "b")
        make_directory(here / "a")
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
        equal(os.listdir(fd), ["f"])
    equal(names(here / "elsewhere" / "b"), {"f"})
    equal(names(here / "a"), set())


def check_rmdir(here: Path) -> None:
    os.makedirs(here / "full" / "below")
    make(here / "file")
    raises((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, here / "full")
    raises(errno.ENOTDIR, os.rmdir, here / "file")
    raises(errno.ENOENT, os.rmdir, here / "missing")
    raises(errno.EINVAL, os.rmdir, str(here / "full" / "below") + "/.")
    raises((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, str(here / "full" / "below") + "/..")
    os.rmdir(here / "full" / "below")
    os.rmdir(here / "full")
    equal(names(here), {"file"})


def check_unlink_errors(here: Path) -> None:
    make_directory(here / "d")
    make(here / "file")
    raises((errno.EISDIR, errno.EPERM), os.unlink, here / "d")
    raises(errno.ENOENT, os.unlink, here / "missing")
    raises(errno.ENOTDIR, os.unlink, str(here / "file") + "/")
    raises(errno.ENOTDIR, os.unlink, here / "file" / "x")


def check_directory_link_count(here: Path) -> None:
    """Tools such as find rely on it: 2 + subdirectories (or always 1, as on btrfs)."""
    base = os.stat(here).st_nlink
    os.mkdir(here / "a")
    os.mkdir(here / "b")
    make(here / "f")
    step = 0 if base == 1 else 1
    equal(os.stat(here).st_nlink, base + 2 * step)
    os.rmdir(here / "a")
    equal(os.stat(here).st_nlink, base + step)


def check_sticky_directory(here: Path) -> None:
    shared = make_directory(here / "tmp", 0o1777)
    USER(lambda: make(shared / "mine"))
    USER(os.mkdir, shared / "mydir")
    denied = (errno.EPERM, errno.EACCES)
    raises(denied, OTHER, os.unlink, shared / "mine")
    raises(denied, OTHER, os.rmdir, shared / "mydir")
    raises(denied, OTHER, os.rename, shared / "mine", shared / "stolen")
    OTHER(lambda: make(shared / "theirs"))
    raises(denied, OTHER, os.rename, shared / "theirs", shared / "mine")
    USER(os.unlink, shared / "mine")


def check_lookup_of_negative_then_created(here: Path) -> None:
    """A cached "no such file" must not outlive the creation."""
    for number in range(20):
        raises(errno.ENOENT, os.stat, here / f"f{number}")
        make(here / f"f{number}")
        equal(os.stat(here / f"f{number}").st_size, 0)
        os.unlink(here / f"f{number}")
        raises(errno.ENOENT, os.stat, here / f"f{number}")


def check_recreated_file_is_new(here: Path) -> None:
    """The inode number may be reused at once, but nothing else of the old file."""
    for turn in range(30):
        path = make(here / "f", b"x" * turn, 0o600 + turn % 8)
        found = os.stat(path)
        equal((found.st_size, stat.S_IMODE(found.st_mode)), (turn, 0o600 + turn % 8))
        os.setxattr(path, "user.turn", str(turn).encode())
        os.unlink(path)
        os.mkdir(here / "f")
        equal(os.listxattr(here / "f"), [])
        os.rmdir(here / "f")


def check_trailing_slash(here: Path) -> None:
    make(here / "file")
    os.mkdir(here / "d")
    os.symlink("d", here / "to-d")
    raises(errno.ENOTDIR, os.stat, str(here / "file") + "/")
    os.mkdir(str(here / "new") + "/")
    assert stat.S_ISLNK(os.lstat(here / "to-d").st_mode)
    assert stat.S_ISDIR(os.lstat(str(here / "to-d") + "/").st_mode)
