"""Changes made behind the mount, in the backing tree, show through it within a bounded time.

On a plain directory both paths are the same, and every change shows at once.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from testkit.waiting import wait_until

from ._tools import PAST_NS, equal, make, make_directory, names, opened, permissions, raises

SECONDS = 2.0  # what the default cache policy promises, with slack for a loaded machine


def _seen(condition: object, what: str) -> None:
    assert callable(condition)
    wait_until(condition, what, SECONDS, passing=OSError)


def _gone(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    return False


def check_new_file_is_seen(here: Path, behind: Path) -> None:
    raises(errno.ENOENT, os.stat, here / "f")
    equal(names(here), set())
    make(behind / "f", b"made behind")
    _seen(lambda: (here / "f").read_bytes() == b"made behind", "a new file under a name known as missing")
    _seen(lambda: names(here) == {"f"}, "the new file in the listing")


def check_removed_file_is_gone(here: Path, behind: Path) -> None:
    make(here / "f", b"x")
    make_directory(here / "d")
    os.stat(here / "f"), os.stat(here / "d"), names(here)
    os.unlink(behind / "f")
    os.rmdir(behind / "d")
    _seen(lambda: _gone(here / "f"), "a removed file")
    _seen(lambda: _gone(here / "d"), "a removed directory")
    _seen(lambda: names(here) == set(), "the listing")


def check_renamed_file_moves(here: Path, behind: Path) -> None:
    make(here / "a", b"x")
    os.stat(here / "a"), names(here)
    os.rename(behind / "a", behind / "b")
    _seen(lambda: _gone(here / "a") and (here / "b").read_bytes() == b"x", "a renamed file")
    _seen(lambda: names(here) == {"b"}, "the listing")


def check_renamed_directory_moves(here: Path, behind: Path) -> None:
    os.makedirs(here / "a" / "sub")
    make(here / "a" / "sub" / "f", b"x")
    (here / "a" / "sub" / "f").read_bytes()
    os.rename(behind / "a", behind / "b")
    _seen(lambda: _gone(here / "a") and (here / "b" / "sub" / "f").read_bytes() == b"x", "a renamed directory")


def check_replaced_file_is_the_new_one(here: Path, behind: Path) -> None:
    """An editor's save: write a new file, rename it over the old one."""
    make(here / "f", b"old")
    equal((here / "f").read_bytes(), b"old")
    make(behind / "new", b"replacement")
    os.rename(behind / "new", behind / "f")
    _seen(lambda: (here / "f").read_bytes() == b"replacement", "a replaced file")
    equal(os.stat(here / "f").st_ino, os.stat(behind / "f").st_ino)


def check_open_replaced_file_is_still_the_old_one(here: Path, behind: Path) -> None:
    make(here / "f", b"old")
    with opened(here / "f", os.O_RDWR) as fd:
        make(behind / "new", b"replacement")
        os.rename(behind / "new", behind / "f")
        _seen(lambda: (here / "f").read_bytes() == b"replacement", "the path")
        equal(os.pread(fd, 10, 0), b"old")
        os.pwrite(fd, b"OLD", 0)
    equal((behind / "f").read_bytes(), b"replacement")


def check_changed_content_is_read(here: Path, behind: Path) -> None:
    make(here / "f", b"x" * 10000)
    equal((here / "f").read_bytes(), b"x" * 10000)
    (behind / "f").write_bytes(b"y" * 10000)
    _seen(lambda: (here / "f").read_bytes() == b"y" * 10000, "new content of the same size")
    with opened(behind / "f", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"tail")
    _seen(lambda: (here / "f").read_bytes() == b"y" * 10000 + b"tail", "appended content")
    os.truncate(behind / "f", 3)
    _seen(lambda: (here / "f").read_bytes() == b"yyy", "truncated content")


def check_open_file_sees_what_is_written_behind(here: Path, behind: Path) -> None:
    """tail -f through the mount, of a log that the host writes."""
    make(here / "log", b"one\n")
    with opened(here / "log") as fd:
        equal(os.read(fd, 100), b"one\n")
        with opened(behind / "log", os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"two\n")
        _seen(lambda: os.pread(fd, 100, 4) == b"two\n", "a line appended behind")


def check_written_through_a_mapping_is_seen(here: Path, behind: Path) -> None:
    """Backup programs look at the mtime. A write through a mapping must update it at the latest
    once it is unmapped and the file closed.
    """
    make(here / "f", b"before" * 1000)
    os.utime(here / "f", ns=(PAST_NS, PAST_NS))
    os.stat(here / "f")
    with opened(behind / "f", os.O_RDWR) as fd:
        view = mmap.mmap(fd, 6000)
    view[:5] = b"after"
    view.flush()
    view.close()
    _seen(lambda: os.stat(here / "f").st_mtime_ns > PAST_NS, "the time of a change through a mapping")
    equal((here / "f").read_bytes()[:5], b"after")


def check_changed_attributes_are_seen(here: Path, behind: Path) -> None:
    make(here / "f", b"x")
    os.stat(here / "f")
    os.chmod(behind / "f", 0o604)
    _seen(lambda: permissions(here / "f") == 0o604, "mode")
    os.chown(behind / "f", 12, 34)
    _seen(lambda: (os.stat(here / "f").st_uid, os.stat(here / "f").st_gid) == (12, 34), "owner")
    os.utime(behind / "f", ns=(PAST_NS, PAST_NS))
    _seen(lambda: os.stat(here / "f").st_mtime_ns == PAST_NS, "mtime")
    os.link(behind / "f", behind / "g")
    _seen(lambda: os.stat(here / "f").st_nlink == 2, "link count")
    os.setxattr(behind / "f", "user.a", b"1")
    _seen(lambda: os.getxattr(here / "f", "user.a") == b"1", "extended attribute")


def check_changed_symlink_is_followed(here: Path, behind: Path) -> None:
    make(here / "one", b"1")
    make(here / "two", b"2")
    os.symlink("one", here / "current")
    equal((here / "current").read_bytes(), b"1")
    os.symlink("two", behind / "new")
    os.rename(behind / "new", behind / "current")
    _seen(lambda: os.readlink(here / "current") == "two" and (here / "current").read_bytes() == b"2", "the new target")


def check_file_replaced_by_directory(here: Path, behind: Path) -> None:
    make(here / "x", b"file")
    os.stat(here / "x")
    os.unlink(behind / "x")
    os.mkdir(behind / "x")
    make(behind / "x" / "inside", b"1")
    _seen(lambda: (here / "x" / "inside").read_bytes() == b"1", "a directory in the place of a file")
    os.unlink(behind / "x" / "inside")
    os.rmdir(behind / "x")
    make(behind / "x", b"file again")
    _seen(lambda: (here / "x").read_bytes() == b"file again", "a file in the place of a directory")


def check_create_over_what_appeared_behind(here: Path, behind: Path) -> None:
    """The name is taken although the kernel's cache holds a negative entry, and the other way round."""
    raises(errno.ENOENT, os.stat, here / "f")
    make(behind / "f", b"theirs")

    def exclusive() -> bool:
        try:
            os.close(os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return True
        raise AssertionError("O_EXCL created a file that exists")

    assert exclusive()
    equal((behind / "f").read_bytes(), b"theirs")
    raises(errno.EEXIST, os.mkdir, here / "f")
    os.unlink(behind / "f")
    _seen(lambda: os.mkdir(here / "f") is None, "mkdir under a name that was removed behind")


def check_use_of_what_vanished_behind(here: Path, behind: Path) -> None:
    """Calls on something that is gone fail with an errno, and the filesystem keeps working."""
    make_directory(here / "d")
    make(here / "d" / "f", b"x")
    os.stat(here / "d" / "f")
    calls = (
        lambda: os.chmod(here / "d" / "f", 0o600),
        lambda: os.close(os.open(here / "d" / "f", os.O_RDWR)),
        lambda: os.truncate(here / "d" / "f", 0),
        lambda: os.rename(here / "d" / "f", here / "g"),
        lambda: os.unlink(here / "d" / "f"),
        lambda: os.mkdir(here / "d" / "new"),
    )
    gone = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
    os.unlink(behind / "d" / "f")
    os.rmdir(behind / "d")
    for call in calls:  # while it may still be cached: an errno, or a change to the unlinked file
        try:
            call()
        except OSError as error:
            assert error.errno in gone, error
    _seen(lambda: _gone(here / "d"), "the removed directory")
    for call in calls:
        raises(gone, call)
    equal(names(behind), set())
    make(here / "alive", b"1")
    equal((behind / "alive").read_bytes(), b"1")


def check_changes_through_the_mount_are_behind_at_once(here: Path, behind: Path) -> None:
    """In the other direction there is no delay for names and attributes."""
    make(here / "f", b"data", 0o640)
    equal((behind / "f").read_bytes(), b"data")
    os.rename(here / "f", here / "g")
    equal(names(behind), {"g"})
    os.chmod(here / "g", 0o611)
    equal(permissions(behind / "g"), 0o611)
    os.utime(here / "g", ns=(PAST_NS, PAST_NS))
    equal(os.stat(behind / "g").st_mtime_ns, PAST_NS)
    os.truncate(here / "g", 1)
    equal((behind / "g").read_bytes(), b"d")
    os.unlink(here / "g")
    equal(names(behind), set())


def check_storm_of_changes(here: Path, behind: Path) -> None:
    """Hundreds of changes of each kind while the mount is being read: at the end both trees agree."""
    for number in range(100):
        make(here / f"f{number}", b"old")
    names(here)
    for number in range(100):
        os.stat(here / f"f{number}")
        kind = number % 4
        path = behind / f"f{number}"
        if kind == 0:
            os.unlink(path)
        elif kind == 1:
            path.write_bytes(b"new content")
        elif kind == 2:
            os.rename(path, behind / f"moved{number}")
        else:
            os.chmod(path, 0o600)
            make(behind / f"extra{number}")

    def tree(top: Path) -> dict[str, tuple[int, int, bytes]]:
        return {
            name: (permissions(top / name), os.stat(top / name).st_size, (top / name).read_bytes())
            for name in names(top)
        }

    _seen(lambda: tree(here) == tree(behind), "the same tree on both sides")
