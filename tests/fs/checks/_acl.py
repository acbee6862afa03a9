"""POSIX ACLs in their extended-attribute form (linux/posix_acl_xattr.h)."""

from __future__ import annotations

import os
import struct
from typing import Any

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_UNDEFINED = 0xFFFFFFFF


def acl(
    user: int,
    group: int,
    other: int,
    mask: int | None = None,
    users: dict[int, int] | None = None,
    groups: dict[int, int] | None = None,
) -> bytes:
    """The attribute's value; each argument is a permission triple 0…7, users and groups by id."""
    entries = [(0x01, user, _UNDEFINED)]
    entries += [(0x02, bits, uid) for uid, bits in sorted((users or {}).items())]
    entries += [(0x04, group, _UNDEFINED)]
    entries += [(0x08, bits, gid) for gid, bits in sorted((groups or {}).items())]
    if mask is not None:
        entries.append((0x10, mask, _UNDEFINED))
    entries.append((0x20, other, _UNDEFINED))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_acl(path: Any, kind: str, value: bytes) -> None:
    """Set the ACL; a backing filesystem without ACLs makes the check Unsupported."""
    from ._tools import NO_SUCH_OPERATION, unsupported_if

    unsupported_if(NO_SUCH_OPERATION, "POSIX ACLs", os.setxattr, path, kind, value)


def get_acl(path: Any, kind: str) -> bytes:
    return os.getxattr(path, kind)
