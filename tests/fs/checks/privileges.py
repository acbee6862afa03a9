"""Each capability, search permission, and groups: the kernel must decide, not the server."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .. import syscalls
from ..actors import GID, GROUPS, NAMESPACE_USER, OTHER, UID, USER, Actor
from ._tools import equal, equal_mode, make, make_directory, opened, raises

CAPS = {
    "chown": syscalls.CAP_CHOWN,
    "dac_override": syscalls.CAP_DAC_OVERRIDE,
    "dac_read_search": syscalls.CAP_DAC_READ_SEARCH,
    "fowner": syscalls.CAP_FOWNER,
    "fsetid": syscalls.CAP_FSETID,
}


def _user_with(*names: str) -> Actor:
    return Actor(f"user with {names}", UID, GID, GROUPS, kept_capabilities=tuple(CAPS[name] for name in names))


def _root_without(*names: str) -> Actor:
    return Actor(f"root without {names}", dropped_capabilities=tuple(CAPS[name] for name in names))


def check_root_without_override_obeys_modes(here: Path) -> None:
    make(here / "f", b"x", 0o600)
    os.chown(here / "f", OTHER.uid, OTHER.gid)
    closed = make_directory(here / "closed", 0o700)
    os.chown(closed, OTHER.uid, OTHER.gid)
    lessened = _root_without("dac_override", "dac_read_search")
    raises(errno.EACCES, lessened, os.open, here / "f", os.O_RDONLY)
    raises(errno.EACCES, lessened, os.listdir, closed)
    raises(errno.EACCES, lessened, os.mkdir, closed / "d")
    raises(errno.EACCES, lessened, os.stat, closed / "anything")


def check_user_with_override_ignores_modes(here: Path) -> None:
    make(here / "f", b"x", 0o000)
    closed = make_directory(here / "closed", 0o000)
    raised = _user_with("dac_override")
    equal(raised(lambda: (here / "f").read_bytes()), b"x")
    raised(lambda: (here / "f").write_bytes(b"y"))
    raised(os.mkdir, closed / "d")
    equal(os.stat(closed / "d").st_uid, UID)


def check_user_with_read_search_only_reads(here: Path) -> None:
    make(here / "f", b"x", 0o000)
    closed = make_directory(here / "closed", 0o000)
    make(closed / "inside", b"y", 0o000)
    raised = _user_with("dac_read_search")
    equal(raised(lambda: (closed / "inside").read_bytes()), b"y")
    equal(raised(os.listdir, closed), ["inside"])
    raises(errno.EACCES, raised, os.open, here / "f", os.O_WRONLY)
    raises(errno.EACCES, raised, os.mkdir, closed / "d")


def check_user_with_fowner_changes_modes_and_times(here: Path) -> None:
    make(here / "f", mode=0o600)
    raised = _user_with("fowner")
    raised(os.chmod, here / "f", 0o640)
    equal_mode(here / "f", 0o640)
    raised(os.utime, here / "f", (5, 5))
    equal(os.stat(here / "f").st_mtime, 5)
    raises(errno.EPERM, raised, os.chown, here / "f", UID, -1)
    sticky = make_directory(here / "sticky", 0o1777)
    make(sticky / "f")
    raised(os.unlink, sticky / "f")


def check_user_with_chown_gives_files_away(here: Path) -> None:
    make(here / "f")
    os.chown(here / "f", UID, GID)
    _user_with("chown")(os.chown, here / "f", 1, 2)
    equal((os.stat(here / "f").st_uid, os.stat(here / "f").st_gid), (1, 2))


def check_root_without_chown_cannot(here: Path) -> None:
    make(here / "f")
    raises(errno.EPERM, _root_without("chown"), os.chown, here / "f", 5, 5)


def check_root_without_fowner_cannot_chmod(here: Path) -> None:
    make(here / "f")
    os.chown(here / "f", UID, GID)
    raises(errno.EPERM, _root_without("fowner"), os.chmod, here / "f", 0o777)
    raises(errno.EPERM, _root_without("fowner"), os.utime, here / "f", (1, 1))


def check_every_parent_must_be_searchable(here: Path) -> None:
    os.makedirs(here / "a" / "b" / "c")
    make(here / "a" / "b" / "c" / "f", b"x", 0o666)
    for closed in (here / "a", here / "a" / "b", here / "a" / "b" / "c"):
        os.chmod(closed, 0o700)
        raises(errno.EACCES, USER, os.stat, here / "a" / "b" / "c" / "f")
        raises(errno.EACCES, USER, os.open, here / "a" / "b" / "c" / "f", os.O_RDONLY)
        os.chmod(closed, 0o711)
        equal(USER(lambda: (here / "a" / "b" / "c" / "f").read_bytes()), b"x")
        raises(errno.EACCES, USER, os.listdir, closed)
        os.chmod(closed, 0o755)


def check_read_without_search_lists_only(here: Path) -> None:
    directory = make_directory(here / "d", 0o744)
    make(directory / "f")
    equal(USER(os.listdir, directory), ["f"])
    raises(errno.EACCES, USER, os.stat, directory / "f")


def check_group_decides_for_members(here: Path) -> None:
    make(here / "f", b"x", 0o640)
    os.chown(here / "f", 0, GROUPS[1])
    equal(USER(lambda: (here / "f").read_bytes()), b"x")
    raises(errno.EACCES, USER, os.open, here / "f", os.O_RDWR)
    raises(errno.EACCES, OTHER, os.open, here / "f", os.O_RDONLY)
    os.chmod(here / "f", 0o660)
    USER(lambda: (here / "f").write_bytes(b"y"))


def check_groups_of_a_user_namespace(here: Path) -> None:
    make(here / "f", b"x", 0o640)
    os.chown(here / "f", 0, NAMESPACE_USER.host_gid(9))
    equal(NAMESPACE_USER(lambda: (here / "f").read_bytes()), b"x")
    os.chown(here / "f", 0, NAMESPACE_USER.host_gid(10))
    raises(errno.EACCES, NAMESPACE_USER, os.open, here / "f", os.O_RDONLY)
    os.chown(here / "f", 0, 9)  # outside, the same number is another group
    raises(errno.EACCES, NAMESPACE_USER, os.open, here / "f", os.O_RDONLY)


def check_groups_changed_by_the_caller(here: Path) -> None:
    """A server that caches a caller's groups by pid or uid must notice setgroups."""
    make_directory(here / "team", 0o770)
    os.chown(here / "team", 0, 29997)

    def body() -> None:
        os.setresgid(GID, GID, GID)
        os.setgroups([29997])
        os.seteuid(UID)
        os.mkdir(here / "team" / "one")
        os.seteuid(0)
        os.setgroups([])
        os.seteuid(UID)
        raises(errno.EACCES, os.mkdir, here / "team" / "two")
        os.seteuid(0)

    Actor("root that changes groups")(body)
    equal(os.listdir(here / "team"), ["one"])


def check_same_file_many_callers(here: Path) -> None:
    """Decisions alternate between callers: none inherits another's."""
    make(here / "f", b"x", 0o600)
    os.chown(here / "f", UID, GID)
    for _ in range(10):
        USER(os.stat, here / "f")
        equal(USER(lambda: (here / "f").read_bytes()), b"x")
        raises(errno.EACCES, OTHER, os.open, here / "f", os.O_RDONLY)
        raises(errno.EACCES, NAMESPACE_USER, os.open, here / "f", os.O_RDONLY)


def check_hard_link_to_a_file_of_another(here: Path) -> None:
    os.chmod(here, 0o777)
    make(here / "f", b"x", 0o600)
    with open("/proc/sys/fs/protected_hardlinks") as setting:
        protected = setting.read().strip() == "1"
    if protected:
        raises(errno.EPERM, USER, os.link, here / "f", here / "l")
    with opened(here / "f") as fd:
        equal(os.fstat(fd).st_nlink, 1 if protected else os.stat(here / "f").st_nlink)


def check_unlink_needs_the_directory_not_the_file(here: Path) -> None:
    directory = make_directory(here / "d", 0o777)
    make(directory / "f", b"x", 0o000)
    USER(os.unlink, directory / "f")
    make(here / "g", b"x", 0o777)
    raises(errno.EACCES, USER, os.unlink, here / "g")


def check_writing_takes_what_it_takes(here: Path) -> None:
    """File capabilities are cleared whoever writes; set-id bits stay if the writer has CAP_FSETID."""
    capability = b"\x01\x00\x00\x02\x00\x20" + bytes(14)  # struct vfs_cap_data: cap_net_raw=ep
    for name, writer, mode in (
        ("by-root", Actor("root"), 0o6755),
        ("by-one-without", _root_without("fsetid"), 0o755),
        ("by-a-user", USER, 0o777),
    ):
        file = make(here / name, b"x", mode & 0o777 | 0o6000)
        os.setxattr(file, "security.capability", capability)
        os.chmod(file, mode & 0o777 | 0o6000)

        def write(file: Path = file) -> None:
            with open(file, "r+b") as opened_file:
                opened_file.write(b"y")

        writer(write)
        equal_mode(file, mode)
        raises(errno.ENODATA, os.getxattr, file, "security.capability")
