"""Compact records of unused nodes: READDIRPLUS tells the kernel about millions of files, and it uses few of them.

A node without an fd and without an open file, which has a file handle, is a record of 64 bytes between operations. That
is a fifth of the object's size, and nothing for the garbage collector to traverse.
"""

from __future__ import annotations

import stat
import struct

from cntr.cntrfs.node import INO_MASK, ROOT_ID, SYNTHETIC, BackingMount, Node
from cntr.linux.file_syscalls import Handle

_RECORD = struct.Struct("=qIIHB")  # birth generation lookups mount kind; then the handle, if it is not derived
_SIZE = _RECORD.size
_HANDLE_KIND = struct.Struct("=i")
_DIRECTORY = stat.S_IFDIR >> 12


class Records:
    """The records of a node table, by node id."""

    def __init__(self, mounts: list[BackingMount]) -> None:
        """mounts: all mounts, at their index."""
        self.mounts = mounts
        self._records: dict[int, bytes] = {}

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._records

    def __len__(self) -> int:
        return len(self._records)

    def ids(self) -> list[int]:
        """Node ids of all records; for any thread."""
        return list(self._records)

    def directories(self) -> list[Node]:
        """The directories, read-only; for any thread."""
        found = ((nodeid, self._records.get(nodeid)) for nodeid in self.ids())
        return [self._node(nodeid, record) for nodeid, record in found if record and record[_SIZE - 1] == _DIRECTORY]

    def put(self, node: Node) -> bool:
        """Turn the node into a record, unless it is in use or reached by name; return whether that was done."""
        handle = node.packed_handle
        if (
            node.fd >= 0 or node.users or node.parent is not None or node.is_parent or not handle
            or node.open is not None or not ROOT_ID < node.nodeid < SYNTHETIC
        ):  # fmt: skip
            return False
        try:
            record = _RECORD.pack(node.birth, node.generation, node.lookups, node.mount.index, node.kind >> 12)
        except struct.error:  # born after the year 2262
            return False
        if isinstance(handle, Handle):
            record += _HANDLE_KIND.pack(handle.kind) + handle.data
        self._records[node.nodeid] = record
        return True

    def enter(self, nodeid: int, birth: int, mount: BackingMount, kind: int) -> int:
        """Count a lookup of a file with a derived handle, old or new; return its generation, 0 if it is not a record.

        A record with another birth or kind belongs to a removed file whose inode number was reused.
        """
        record = self._records.get(nodeid)
        lookups = 1
        if record is not None:
            if len(record) != _SIZE:
                return 0
            lookups += _RECORD.unpack_from(record)[2]
        generation = (birth ^ birth >> 32) & 0xFFFFFFFF or 1  # generation_of(birth)
        try:
            self._records[nodeid] = _RECORD.pack(birth, generation, lookups, mount.index, kind)
        except struct.error:
            return 0
        return generation

    def take(self, nodeid: int) -> Node | None:
        """Turn a record back into a node and return it; None if there is none."""
        record = self._records.pop(nodeid, None)
        return None if record is None else self._node(nodeid, record)

    def forget(self, nodeid: int, count: int) -> tuple[BackingMount, Handle | None] | None:
        """Subtract COUNT lookups. At 0 the record is removed: return its mount, and the handle unless derived."""
        record = self._records[nodeid]
        birth, generation, lookups, index, kind = _RECORD.unpack_from(record)
        if lookups > count:
            self._records[nodeid] = _RECORD.pack(birth, generation, lookups - count, index, kind) + record[_SIZE:]
            return None
        del self._records[nodeid]
        return self.mounts[index], _handle(record)

    def _node(self, nodeid: int, record: bytes) -> Node:
        node = Node.__new__(Node)
        node.nodeid = nodeid
        node.birth, node.generation, node.lookups, index, kind = _RECORD.unpack_from(record)
        node.mount = mount = self.mounts[index]
        node.ino = nodeid & INO_MASK if mount.base else nodeid
        node.kind = kind << 12
        node.packed_handle = _handle(record) or True
        node.rest()
        return node


def _handle(record: bytes) -> Handle | None:
    if len(record) == _SIZE:
        return None
    return Handle(_HANDLE_KIND.unpack_from(record, _SIZE)[0], record[_SIZE + 4 :])
