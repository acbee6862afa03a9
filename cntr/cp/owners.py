"""Owners with ``--archive``: translates between the ids of a container's user namespace and the host's.

The root of a container's user namespace is an ordinary user on the host. Copying the number would make a user's file
root's.
"""

from __future__ import annotations

import os

from cntr.cp.stream import KEEP, same
from cntr.errors import TargetNotFound
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.engines import Container

    Rows = tuple[tuple[int, int, int], ...]

ACL = b"system.posix_acl_"
NO_ACL = "access control list not kept: it names an id that the other side does not know"
ACL_VERSION = (
    b"\2\0\0\0"  # linux/posix_acl_xattr.h: a header of 4 bytes, then entries of tag, permissions (2 bytes each), id (4)
)
ACL_ENTRY = 8
ACL_USER, ACL_GROUP = 0x02, 0x08


def attribute(key: bytes, value: bytes, owner: Callable[[int, int], tuple[int, int]]) -> bytes | None:
    """VALUE of an extended attribute as OWNER translates the ids in it; None for an ACL with an id that it does not know."""
    return acl(value, owner) if key.startswith(ACL) and owner is not same else value


class Owners:
    """Translates ids.

    start_time: of the process with these maps, 0 if there is none; owner: the container's user; strangers: devices
    whose owners are not trusted.
    """

    __slots__ = ("gid_map", "owner", "start_time", "strangers", "uid_map")

    def __init__(self) -> None:
        self.uid_map: Rows = ()
        self.gid_map: Rows = ()
        self.start_time = self.owner = 0
        self.strangers: frozenset[int] = frozenset()

    def outward(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's (uid, gid) for the container's; KEEP if there is none, so that the copier's stays."""
        if self.start_time and uid != KEEP:
            uid = _keep(procfs.map_id(uid, self.uid_map))
        if self.start_time and gid != KEEP:
            gid = _keep(procfs.map_id(gid, self.gid_map))
        if self.owner:  # a user's container cannot make files of root's
            uid, gid = uid or self.owner, gid or KEEP
        return uid, gid

    def inward(self, uid: int, gid: int) -> tuple[int, int]:
        """The container's (uid, gid) for the host's; an unmapped id keeps its number."""
        return _inside(uid, self.uid_map), _inside(gid, self.gid_map)


def of(container: Container) -> Owners:
    """Read the maps of a container's process. Raises TargetNotFound, OSError."""
    owners = Owners()
    owners.owner = container.owner
    if container.state == "rootfs":
        return owners
    try:
        fd = os.open(f"/proc/{container.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TargetNotFound(
            f"{container.label()}: pid {container.pid} is gone", "is the container still running?"
        ) from None
    try:
        owners.start_time = procfs.start_time(procfs.read("stat", fd))
        owners.uid_map = procfs.id_map(procfs.read("uid_map", fd))
        owners.gid_map = procfs.id_map(procfs.read("gid_map", fd))
        owners.strangers = _strangers(procfs.read("mountinfo", fd))
    finally:
        os.close(fd)
    return owners


def acl(value: bytes, translate: Callable[[int, int], tuple[int, int]]) -> bytes | None:
    """An access control list (acl(5)) with its ids translated; None if an id has no translation, or the ACL is
    malformed.
    """
    if value[:4] != ACL_VERSION or len(value) % ACL_ENTRY != 4:
        return None
    result = value[:4]
    for start in range(4, len(value), ACL_ENTRY):
        entry = value[start : start + ACL_ENTRY]
        tag, number = int.from_bytes(entry[:2], "little"), int.from_bytes(entry[4:], "little")
        if tag in (ACL_USER, ACL_GROUP):
            number = translate(number, KEEP)[0] if tag == ACL_USER else translate(KEEP, number)[1]
            if number == KEEP:
                return None
        result += entry[:4] + number.to_bytes(4, "little")
    return result


def _strangers(text: str) -> frozenset[int]:
    """The devices of FUSE mounts made by users: the server, a user's program, decides about the owner of each file
    (mount.fuse3(8)).
    """
    return frozenset(
        mount.device
        for mount in procfs.mountinfo(text)
        if mount.fstype.partition(".")[0] in ("fuse", "fuseblk") and "user_id=0" not in mount.super
    )


def _keep(number: int | None) -> int:
    return KEEP if number is None else number


def _inside(number: int, rows: Rows) -> int:
    if number == KEEP:
        return KEEP
    inside = [first + number - outside for first, outside, count in rows if outside <= number < outside + count]
    return inside[0] if inside else number
