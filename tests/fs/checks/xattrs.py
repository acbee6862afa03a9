"""Extended attributes and POSIX ACLs."""

from __future__ import annotations

import errno
import os
import platform
import struct
from pathlib import Path

from ..actors import GID, GROUPS, NAMESPACE_ROOT, OTHER, UID, USER
from ._acl import ACCESS, DEFAULT, acl, get_acl, set_acl
from ._tools import (
    NO_SUCH_OPERATION,
    Unsupported,
    equal,
    equal_mode,
    make,
    make_directory,
    opened,
    permissions,
    raises,
    tick,
    unsupported_if,
)


def _set(path: object, name: str, value: bytes, flags: int = 0) -> None:
    unsupported_if(
        NO_SUCH_OPERATION, f"extended attributes {name.split('.')[0]}.*", os.setxattr, path, name, value, flags
    )


def check_set_get_list_remove(here: Path) -> None:
    for path in (make(here / "f"), make_directory(here / "d")):
        _set(path, "user.one", b"1")
        _set(path, "user.two", b"\0\xff binary \n")
        _set(path, "user.empty", b"")
        equal(os.getxattr(path, "user.one"), b"1")
        equal(os.getxattr(path, "user.two"), b"\0\xff binary \n")
        equal(os.getxattr(path, "user.empty"), b"")
        equal(set(os.listxattr(path)), {"user.one", "user.two", "user.empty"})
        _set(path, "user.one", b"changed and longer")
        equal(os.getxattr(path, "user.one"), b"changed and longer")
        os.removexattr(path, "user.one")
        equal(set(os.listxattr(path)), {"user.two", "user.empty"})
        raises(errno.ENODATA, os.getxattr, path, "user.one")
        raises(errno.ENODATA, os.removexattr, path, "user.one")


def check_create_and_replace_flags(here: Path) -> None:
    path = make(here / "f")
    raises(errno.ENODATA, os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
    _set(path, "user.a", b"1", os.XATTR_CREATE)
    raises(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    _set(path, "user.a", b"3", os.XATTR_REPLACE)
    equal(os.getxattr(path, "user.a"), b"3")


def check_size_query_and_short_buffer(here: Path) -> None:
    import ctypes

    path = make(here / "f")
    _set(path, "user.a", b"x" * 100)
    libc = ctypes.CDLL(None, use_errno=True)
    name = os.fsencode(path)
    equal(libc.getxattr(name, b"user.a", None, 0), 100)
    equal(libc.getxattr(name, b"user.a", ctypes.create_string_buffer(10), 10), -1)
    equal(ctypes.get_errno(), errno.ERANGE)
    equal(libc.listxattr(name, None, 0), len("user.a") + 1)
    equal(libc.listxattr(name, ctypes.create_string_buffer(3), 3), -1)
    equal(ctypes.get_errno(), errno.ERANGE)


def check_names_and_sizes_at_their_limits(here: Path) -> None:
    path = make(here / "f")
    longest = "user." + "n" * 250
    _set(path, longest, b"v")
    equal(os.listxattr(path), [longest])
    raises(errno.ERANGE, os.setxattr, path, longest + "n", b"v")
    raises(errno.E2BIG, os.setxattr, path, "user.big", b"x" * 65537)
    raises(NO_SUCH_OPERATION, os.setxattr, path, "nonsense.name", b"v")
    raises((errno.EINVAL, *NO_SUCH_OPERATION), os.setxattr, path, "user.", b"v")


def check_many_attributes(here: Path) -> None:
    path = make(here / "f")
    wanted = {f"user.number{number}": str(number).encode() for number in range(60)}
    for name, value in wanted.items():
        _set(path, name, value)
    equal({name: os.getxattr(path, name) for name in os.listxattr(path)}, wanted)


def check_open_and_unlinked_file(here: Path) -> None:
    path = make(here / "f")
    with opened(path) as fd:
        _set(fd, "user.a", b"1")
        os.unlink(path)
        _set(fd, "user.b", b"2")
        equal(set(os.listxattr(fd)), {"user.a", "user.b"})
        os.removexattr(fd, "user.a")
        equal(os.listxattr(fd), ["user.b"])


def check_not_on_symlinks_and_special_files(here: Path) -> None:
    """xattr(7): user.* is for files and directories only."""
    make(here / "f")
    os.symlink("f", here / "s")
    os.mkfifo(here / "p")
    raises(errno.EPERM, lambda: os.setxattr(here / "s", "user.a", b"1", follow_symlinks=False))
    raises(errno.EPERM, os.setxattr, here / "p", "user.a", b"1")
    _set(here / "s", "user.a", b"on the target")
    equal(os.getxattr(here / "f", "user.a"), b"on the target")


def check_trusted_on_a_symlink(here: Path) -> None:
    """trusted.* attributes belong to the link itself, not to its target (overlayfs and rsync --fake-super use this)."""
    os.symlink("nowhere", here / "s")
    try:
        os.setxattr(here / "s", "trusted.a", b"1", follow_symlinks=False)
    except OSError as error:
        raise Unsupported(f"trusted.* on symlinks ({error.strerror})") from error
    equal(os.getxattr(here / "s", "trusted.a", follow_symlinks=False), b"1")
    equal(os.listxattr(here / "s", follow_symlinks=False), ["trusted.a"])
    os.removexattr(here / "s", "trusted.a", follow_symlinks=False)
    equal(os.listxattr(here / "s", follow_symlinks=False), [])


def check_permissions_of_user_attributes(here: Path) -> None:
    path = make(here / "f", mode=0o644)
    _set(path, "user.a", b"1")
    equal(USER(os.getxattr, path, "user.a"), b"1")
    raises(errno.EACCES, USER, os.setxattr, path, "user.a", b"2")
    raises(errno.EACCES, USER, os.removexattr, path, "user.a")
    os.chmod(path, 0o600)
    raises(errno.EACCES, USER, os.getxattr, path, "user.a")
    shared = make_directory(here / "sticky", 0o1777)
    raises(errno.EPERM, USER, os.setxattr, shared, "user.a", b"1")


def check_trusted_needs_root(here: Path) -> None:
    path = make(here / "f", mode=0o666)
    _set(path, "trusted.a", b"1")
    equal(os.getxattr(path, "trusted.a"), b"1")
    raises(errno.EPERM, USER, os.setxattr, path, "trusted.b", b"1")
    raises(errno.ENODATA, USER, os.getxattr, path, "trusted.a")
    raises(errno.ENODATA, NAMESPACE_ROOT, os.getxattr, path, "trusted.a")
    equal(os.listxattr(path), ["trusted.a"])
    equal(USER(os.listxattr, path), [], "trusted.* is not even listed for others")


def check_security_attributes(here: Path) -> None:
    path = make(here / "f", mode=0o666)
    _set(path, "security.test", b"label")
    equal(os.getxattr(path, "security.test"), b"label")
    equal(USER(os.getxattr, path, "security.test"), b"label")
    if not _bpf_answers_for_the_capability():
        raises(errno.EPERM, USER, os.setxattr, path, "security.test", b"other")


def _bpf_answers_for_the_capability() -> bool:
    """Before Linux 6.10, security_inode_setxattr() checks CAP_SYS_ADMIN only if no module has a
    hook; the BPF LSM has empty hooks.
    """
    modules = Path("/sys/kernel/security/lsm")
    old = tuple(map(int, platform.release().split(".")[:2])) < (6, 10)
    return old and modules.exists() and "bpf" in modules.read_text().split(",")


def check_file_capabilities(here: Path) -> None:
    """security.capability is set by root, and cleared by a write."""
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    path = make(here / "f", b"program", 0o777)
    _set(path, "security.capability", value)
    equal(os.getxattr(path, "security.capability"), value)
    raises(errno.EPERM, USER, os.setxattr, path, "security.capability", value)
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
    raises(errno.ENODATA, os.getxattr, path, "security.capability")


def check_file_capabilities_lost_on_truncate_and_chown(here: Path) -> None:
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    for name, action in (("t", lambda path: os.truncate(path, 3)), ("c", lambda path: os.chown(path, 1, 1))):
        path = make(here / name, b"program", 0o777)
        _set(path, "security.capability", value)
        action(path)
        raises(errno.ENODATA, os.getxattr, path, "security.capability")


def check_ctime_moves(here: Path) -> None:
    path = make(here / "f")
    for action in (lambda: _set(path, "user.a", b"1"), lambda: os.removexattr(path, "user.a")):
        before = os.stat(path).st_ctime_ns
        tick()
        action()
        assert os.stat(path).st_ctime_ns > before


def check_acl_grants_and_denies(here: Path) -> None:
    path = make(here / "f", b"x", 0o600)
    set_acl(path, ACCESS, acl(user=6, group=0, other=0, mask=4, users={UID: 6}))
    equal(USER(lambda: path.read_bytes()), b"x")
    raises(errno.EACCES, USER, os.open, path, os.O_WRONLY)  # the mask takes the write bit
    raises(errno.EACCES, OTHER, os.open, path, os.O_RDONLY)
    set_acl(path, ACCESS, acl(user=6, group=0, other=0, mask=6, users={UID: 6}))
    USER(lambda: path.write_bytes(b"y"))
    set_acl(path, ACCESS, acl(user=6, group=4, other=4, mask=6, users={UID: 0}))
    raises(errno.EACCES, USER, os.open, path, os.O_RDONLY)
    OTHER(lambda: path.read_bytes())


def check_acl_of_supplementary_group(here: Path) -> None:
    path = make(here / "f", b"x", 0o600)
    set_acl(path, ACCESS, acl(user=6, group=0, other=0, mask=6, groups={GROUPS[1]: 6}))
    USER(lambda: path.write_bytes(b"by a group"))
    raises(errno.EACCES, OTHER, os.open, path, os.O_RDONLY)


def check_acl_and_mode_are_one(here: Path) -> None:
    path = make(here / "f", mode=0o640)
    set_acl(path, ACCESS, acl(user=7, group=5, other=1, mask=6, users={UID: 7}))
    equal_mode(path, 0o761)  # the group bits show the mask
    os.chmod(path, 0o704)
    equal(get_acl(path, ACCESS), acl(user=7, group=5, other=4, mask=0, users={UID: 7}))
    set_acl(path, ACCESS, acl(user=6, group=4, other=0))
    equal_mode(path, 0o640)
    assert ACCESS not in os.listxattr(path), "a minimal ACL is just a mode"
    raises(errno.ENODATA, os.getxattr, path, ACCESS)


def check_acl_seen_through_every_way(here: Path, behind: Path) -> None:
    path = make(here / "f", mode=0o600)
    value = acl(user=6, group=0, other=0, mask=4, users={UID: 4})
    set_acl(path, ACCESS, value)
    equal(get_acl(behind / "f", ACCESS), value)
    assert ACCESS in os.listxattr(path)
    os.removexattr(path, ACCESS)
    raises(errno.ENODATA, os.getxattr, behind / "f", ACCESS)
    equal(permissions(path), permissions(behind / "f"))


def check_acl_belongs_to_the_owner(here: Path) -> None:
    path = make(here / "f", mode=0o666)
    value = acl(user=6, group=6, other=6, mask=6, users={OTHER.uid: 6})
    raises(errno.EPERM, USER, os.setxattr, path, ACCESS, value)
    os.chown(path, UID, GID)
    USER(set_acl, path, ACCESS, value)
    raises((errno.EACCES, errno.EINVAL), os.setxattr, path, DEFAULT, value)  # only directories have defaults


def check_acl_setting_clears_setgid_for_strangers(here: Path) -> None:
    """posix_acl_update_mode: S_ISGID is cleared if the owner is not in the group (xfstests generic/375)."""
    path = make(here / "f")
    os.chown(path, UID, 29999)
    os.chmod(path, 0o2755)
    USER(set_acl, path, ACCESS, acl(user=7, group=5, other=5, mask=5, users={UID: 5}))
    equal(permissions(path) & 0o2000, 0)


def check_bad_acls_are_refused(here: Path) -> None:
    path = make(here / "f")
    set_acl(path, ACCESS, acl(user=6, group=4, other=4))
    raises(errno.EINVAL, os.setxattr, path, ACCESS, b"\x02\0\0\0garbage")
    raises((errno.EINVAL, *NO_SUCH_OPERATION), os.setxattr, path, ACCESS, struct.pack("<I", 99) + b"\0" * 8)
    raises(errno.EINVAL, os.setxattr, path, ACCESS, acl(user=6, group=4, other=4, users={UID: 6}))  # no mask


def check_acl_ids_are_the_callers(here: Path) -> None:
    """In a user namespace, the ids in an ACL are the namespace's."""
    path = make(here / "f")
    os.chown(path, NAMESPACE_ROOT.host_uid(0), NAMESPACE_ROOT.host_gid(0))
    NAMESPACE_ROOT(set_acl, path, ACCESS, acl(user=6, group=4, other=4, mask=6, users={5: 6}))
    value = acl(user=6, group=4, other=4, mask=6, users={NAMESPACE_ROOT.host_uid(5): 6})
    equal(get_acl(path, ACCESS), value)


def check_default_acl_of_directory(here: Path) -> None:
    directory = make_directory(here / "d")
    value = acl(user=7, group=5, other=0)
    set_acl(directory, DEFAULT, value)
    equal(get_acl(directory, DEFAULT), value)
    equal_mode(directory, 0o755)
    os.removexattr(directory, DEFAULT)
    raises(errno.ENODATA, os.getxattr, directory, DEFAULT)
