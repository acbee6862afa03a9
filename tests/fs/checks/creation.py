"""A new file's mode, owner and group, and who may create it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .. import syscalls
from ..actors import GID, GROUPS, NAMESPACE_ROOT, NAMESPACE_USER, OTHER, UID, USER, Actor
from ._tools import equal, equal_mode, make, make_directory, opened, permissions, raises, umask

CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def _create(path: Path, mode: int) -> None:
    os.close(os.open(path, CREATE, mode))


def check_mode_of_file_is_exact(here: Path) -> None:
    with umask(0):
        for mode in (0o600, 0o640, 0o000, 0o777, 0o4755, 0o2755, 0o1644, 0o444, 0o007):
            _create(here / f"{mode:o}", mode)
            equal_mode(here / f"{mode:o}", mode)


def check_umask_applies_once(here: Path) -> None:
    for mask, mode in ((0o022, 0o777), (0o077, 0o666), (0o777, 0o777), (0o002, 0o1775)):
        with umask(mask):
            _create(here / f"f{mask:o}", mode)
            os.mkdir(here / f"d{mask:o}", mode)
            os.mkfifo(here / f"p{mask:o}", mode)
        equal_mode(here / f"f{mask:o}", mode & ~mask)
        equal_mode(here / f"d{mask:o}", mode & ~mask)
        equal_mode(here / f"p{mask:o}", mode & ~mask & 0o1777)


def check_private_file_stays_private(here: Path) -> None:
    """If 0600 became 0755, other users could read it."""
    with umask(0o022):
        os.chmod(here, 0o777)
        USER(_create, here / "secret", 0o600)
    equal_mode(here / "secret", 0o600)
    raises(errno.EACCES, OTHER, os.open, here / "secret", os.O_RDONLY)


def check_mode_of_directory_is_exact(here: Path) -> None:
    with umask(0):
        for mode in (0o700, 0o755, 0o000, 0o1777, 0o711):
            os.mkdir(here / f"{mode:o}", mode)
            equal_mode(here / f"{mode:o}", mode)


def check_mode_000_stays_open(here: Path) -> None:
    """The creator's descriptor works whatever the mode."""
    os.chmod(here, 0o777)

    def as_user() -> bytes:
        with opened(here / "f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0) as fd:
            os.write(fd, b"written")
            return os.pread(fd, 100, 0)

    equal(USER(as_user), b"written")
    raises(errno.EACCES, USER, os.open, here / "f", os.O_RDONLY)


def check_readonly_mode_with_writable_fd(here: Path) -> None:
    """git writes objects with open(O_CREAT|O_RDWR, 0444); NFS-like servers get this wrong."""
    os.chmod(here, 0o777)

    def as_user() -> None:
        with opened(here / "object", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444) as fd:
            os.write(fd, b"x" * 100)
            os.ftruncate(fd, 10)

    USER(as_user)
    equal(os.stat(here / "object").st_size, 10)
    equal_mode(here / "object", 0o444)


def check_owner_is_the_caller(here: Path) -> None:
    os.chmod(here, 0o777)

    def create_all() -> None:
        _create(here / "file", 0o644)
        os.mkdir(here / "directory")
        os.symlink("target", here / "symlink")
        os.mkfifo(here / "fifo")
        os.mknod(here / "socket", stat.S_IFSOCK | 0o600)

    USER(create_all)
    for name in ("file", "directory", "symlink", "fifo", "socket"):
        found = os.lstat(here / name)
        equal((found.st_uid, found.st_gid), (UID, GID), name)


def check_owner_on_the_backing_tree(here: Path, behind: Path) -> None:
    os.chmod(here, 0o777)
    USER(_create, here / "file", 0o640)
    found = os.stat(behind / "file")
    equal((found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)), (UID, GID, 0o640))


def check_owner_in_user_namespace(here: Path) -> None:
    os.chmod(here, 0o777)
    for actor in (NAMESPACE_ROOT, NAMESPACE_USER):
        actor(_create, here / actor.name, 0o600)
        found = os.stat(here / actor.name)
        equal((found.st_uid, found.st_gid), (actor.host_uid(), actor.host_gid()), actor.name)
        inside = actor(os.stat, here / actor.name)
        equal((inside.st_uid, inside.st_gid), (actor.uid, actor.gid), f"{actor.name} inside")


def check_unmapped_owner_shows_as_overflow(here: Path) -> None:
    make(here / "file")
    found = NAMESPACE_ROOT(os.stat, here / "file")
    equal((found.st_uid, found.st_gid), (65534, 65534))
    raises(errno.EPERM, NAMESPACE_ROOT, os.chmod, here / "file", 0o600)


def check_namespace_root_is_not_root(here: Path) -> None:
    """A capability in a user namespace does not apply to files whose owner is not mapped in it."""
    make(here / "secret", b"x", 0o600)
    raises(errno.EACCES, NAMESPACE_ROOT, os.open, here / "secret", os.O_RDONLY)
    raises(errno.EACCES, NAMESPACE_ROOT, _create, here / "new", 0o644)
    raises((errno.EPERM, errno.EACCES), NAMESPACE_ROOT, os.mknod, here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def check_namespace_root_rules_its_own(here: Path) -> None:
    """It does apply to files whose owner is mapped."""
    os.chmod(here, 0o777)
    make_directory(here / "own")
    os.chown(here / "own", NAMESPACE_ROOT.host_uid(5), NAMESPACE_ROOT.host_gid(5))
    os.chmod(here / "own", 0o700)
    NAMESPACE_ROOT(_create, here / "own" / "f", 0o600)
    equal(os.stat(here / "own" / "f").st_uid, NAMESPACE_ROOT.host_uid(0))
    NAMESPACE_ROOT(os.chown, here / "own" / "f", 9, 9)
    equal(os.stat(here / "own" / "f").st_uid, NAMESPACE_ROOT.host_uid(9))


def check_exclusive(here: Path) -> None:
    make(here / "file", b"kept")
    os.symlink("nowhere", here / "dangling")
    os.mkdir(here / "directory")
    for name in ("file", "dangling", "directory"):
        raises(errno.EEXIST, os.open, here / name, CREATE)
    equal((here / "file").read_bytes(), b"kept")
    raises(errno.EEXIST, os.mkdir, here / "file")
    raises(errno.EEXIST, os.symlink, "x", here / "file")
    raises(errno.EEXIST, os.mkfifo, here / "dangling")


def check_exclusive_has_one_winner(here: Path) -> None:
    """Lock files rely on it."""
    import threading

    from ._tools import in_threads

    barrier = threading.Barrier(8)
    for turn in range(20):
        won = []

        def attempt(number: int, turn: int = turn, won: list[int] = won) -> None:
            barrier.wait(30)
            try:
                _create(here / f"lock{turn}", 0o600)
            except FileExistsError:
                return
            won.append(number)

        in_threads(8, attempt)
        equal(len(won), 1, "winners")


def check_create_through_dangling_symlink(here: Path) -> None:
    os.symlink("target", here / "link")
    os.close(os.open(here / "link", os.O_CREAT | os.O_WRONLY, 0o600))
    equal_mode(here / "target", 0o600)


def check_create_errors(here: Path) -> None:
    make(here / "file")
    raises(errno.ENOTDIR, _create, here / "file" / "x", 0o644)
    raises(errno.ENOENT, _create, here / "missing" / "x", 0o644)
    raises(errno.EISDIR, os.open, here, os.O_WRONLY)
    raises(errno.EISDIR, os.open, here, os.O_CREAT | os.O_RDONLY)
    raises(errno.ENOTDIR, os.open, here / "file", os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("file", here / "link")
    raises(errno.ELOOP, os.open, here / "link", os.O_RDONLY | os.O_NOFOLLOW)
    raises(errno.ENOENT, os.open, here / "missing", os.O_RDONLY)


def check_directory_without_permission(here: Path) -> None:
    make_directory(here / "closed", 0o755)
    raises(errno.EACCES, USER, _create, here / "closed" / "f", 0o644)
    raises(errno.EACCES, USER, os.mkdir, here / "closed" / "d")
    raises(errno.EACCES, USER, os.symlink, "x", here / "closed" / "s")
    raises(errno.EACCES, USER, os.mkfifo, here / "closed" / "p")
    raises((errno.EACCES, errno.EPERM), USER, os.link, make(here / "own"), here / "closed" / "l")


def check_supplementary_group_may_create(here: Path) -> None:
    for number, group in enumerate(GROUPS):
        directory = make_directory(here / f"team{number}", 0o770)
        os.chown(directory, 0, group)
        USER(_create, directory / "f", 0o644)
        equal(os.stat(directory / "f").st_gid, GID)
        raises(errno.EACCES, OTHER, _create, directory / "g", 0o644)


def check_forty_supplementary_groups(here: Path) -> None:
    """More than the 32 that request structures of a fixed size hold."""
    directory = make_directory(here / "team", 0o770)
    os.chown(directory, 0, 21039)
    crowded = Actor("crowded", UID, GID, tuple(range(21000, 21040)))
    crowded(_create, directory / "f", 0o644)


def check_setgid_directory_is_inherited(here: Path) -> None:
    team = make_directory(here / "team", 0o777)
    os.chown(team, 0, GROUPS[0])
    os.chmod(team, 0o2777)

    def create_all() -> None:
        _create(team / "file", 0o664)
        os.mkdir(team / "directory", 0o755)
        os.symlink("x", team / "symlink")
        os.mkfifo(team / "fifo")

    USER(create_all)
    for name in ("file", "directory", "symlink", "fifo"):
        equal(os.lstat(team / name).st_gid, GROUPS[0], f"group of {name}")
    assert permissions(team / "directory") & stat.S_ISGID, "a new directory inherits the setgid bit"
    assert not permissions(team / "file") & stat.S_ISGID, "a new file does not"


def check_setgid_file_needs_membership(here: Path) -> None:
    """Otherwise a setgid program could be created for a group that its creator is not in."""
    team = make_directory(here / "team", 0o777)
    os.chown(team, 0, 29999)
    os.chmod(team, 0o2777)
    with umask(0):
        USER(_create, team / "stranger", 0o2775)
        equal_mode(team / "stranger", 0o775)
        os.chown(team, 0, GROUPS[1])
        os.chmod(team, 0o2777)
        USER(_create, team / "member", 0o2775)
        equal_mode(team / "member", 0o2775)


def check_device_nodes(here: Path) -> None:
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here / "loop", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    os.mknod(here / "wide", stat.S_IFCHR | 0o600, os.makedev(0x123, 0x45678))
    found = os.stat(here / "null")
    equal((stat.S_IFMT(found.st_mode), found.st_rdev), (stat.S_IFCHR, os.makedev(1, 3)))
    found = os.stat(here / "loop")
    equal((stat.S_IFMT(found.st_mode), found.st_rdev), (stat.S_IFBLK, os.makedev(7, 200)))
    equal(os.stat(here / "wide").st_rdev, os.makedev(0x123, 0x45678))
    raises(errno.EPERM, USER, os.mknod, make_directory(here / "d", 0o777) / "n", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def check_mknod_regular_file(here: Path) -> None:
    with umask(0o022):
        os.mknod(here / "file", stat.S_IFREG | 0o666)
    equal_mode(here / "file", 0o644)
    (here / "file").write_bytes(b"usable")
    equal((here / "file").read_bytes(), b"usable")


def check_tmpfile(here: Path) -> None:
    """O_TMPFILE: created without a name, then linked."""
    with umask(0o022), opened(here, os.O_RDWR | syscalls.O_TMPFILE, 0o666) as fd:
        equal(os.fstat(fd).st_nlink, 0)
        equal(os.listdir(here), [])
        os.write(fd, b"content")
        syscalls.link_fd(fd, here / "named")
        equal(os.fstat(fd).st_nlink, 1)
    equal((here / "named").read_bytes(), b"content")
    equal_mode(here / "named", 0o644)


def check_tmpfile_exclusive_cannot_be_linked(here: Path) -> None:
    with opened(here, os.O_RDWR | syscalls.O_TMPFILE | os.O_EXCL, 0o600) as fd:
        raises(errno.ENOENT, syscalls.link_fd, fd, here / "named")


def check_tmpfile_owner_and_group(here: Path) -> None:
    os.chown(here, 0, GROUPS[0])
    os.chmod(here, 0o2777)

    def owner() -> tuple[int, int, int]:
        with opened(here, os.O_RDWR | syscalls.O_TMPFILE, 0o640) as fd:
            found = os.fstat(fd)
            return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)

    equal(USER(owner), (UID, GROUPS[0], 0o640))


def check_parent_times_change(here: Path) -> None:
    from ._tools import PAST_NS, touch_past

    actions = {
        "create": lambda: _create(here / "f", 0o644),
        "mkdir": lambda: os.mkdir(here / "d"),
        "symlink": lambda: os.symlink("x", here / "s"),
        "link": lambda: os.link(here / "f", here / "l"),
        "rename": lambda: os.rename(here / "l", here / "m"),
        "unlink": lambda: os.unlink(here / "m"),
        "rmdir": lambda: os.rmdir(here / "d"),
    }
    for name, action in actions.items():
        touch_past(here)
        action()
        found = os.stat(here)
        assert found.st_mtime_ns > PAST_NS, f"{name} does not change the directory's mtime"
        assert found.st_ctime_ns > PAST_NS, f"{name} does not change the directory's ctime"


def check_default_acl_replaces_umask(here: Path) -> None:
    """With a default ACL the umask does not apply (acl(5)): that needs a server that sees the raw mode."""
    from ._acl import DEFAULT, acl, set_acl

    set_acl(here, DEFAULT, acl(user=7, group=7, other=4, mask=7, users={UID: 7}))
    with umask(0o077):
        _create(here / "file", 0o666)
        os.mkdir(here / "directory", 0o777)
    equal_mode(here / "file", 0o664)
    equal_mode(here / "directory", 0o774)


def check_default_acl_is_inherited(here: Path) -> None:
    from ._acl import ACCESS, DEFAULT, acl, get_acl, set_acl

    default = acl(user=7, group=5, other=0, mask=7, users={UID: 7})
    set_acl(here, DEFAULT, default)
    with umask(0):
        os.mkdir(here / "d", 0o777)
        _create(here / "f", 0o666)
    equal(get_acl(here / "d", DEFAULT), default, "default ACL of the new directory")
    equal(get_acl(here / "d", ACCESS), default, "access ACL of the new directory")
    equal(get_acl(here / "f", ACCESS), acl(user=6, group=5, other=0, mask=6, users={UID: 7}), "ACL of the new file")
    USER(lambda: (here / "f").write_bytes(b"granted by the inherited ACL"))
    raises(errno.EACCES, OTHER, os.open, here / "f", os.O_RDONLY)


def check_fsuid_counts(here: Path) -> None:
    """NFS servers, for example, change only their filesystem ids."""
    os.chmod(here, 0o777)

    def as_fsuid() -> None:
        syscalls.setfsgid(OTHER.gid)
        syscalls.setfsuid(OTHER.uid)
        _create(here / "f", 0o600)

    Actor("root-with-fsuid")(as_fsuid)
    found = os.stat(here / "f")
    equal((found.st_uid, found.st_gid), (OTHER.uid, OTHER.gid))


def check_create_follows_new_group_of_parent(here: Path) -> None:
    """A cached parent must not decide the group of files created after a chown."""
    os.chmod(here, 0o2777)
    for group in (GROUPS[0], 29998, GROUPS[1]):
        os.chown(here, 0, group)
        os.chmod(here, 0o2777)
        USER(_create, here / f"{group}", 0o644)
        equal(os.stat(here / f"{group}").st_gid, group)
