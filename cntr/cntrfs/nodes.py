"""The node table: which backing file a node id of the kernel refers to.

A node is a backing file's identity, ``FileId(mnt_id, dev, ino)``, never its path: renaming a directory does not affect
its children's nodes. Node ids are made from the identity (backing mount and inode number), so a node id that a client
keeps in an exported file handle refers to the same file later; the generation distinguishes reused inode numbers.

Nodes do not keep fds: a bounded set of O_PATH fds is opened when an operation needs one, by file handle if the
filesystem has handles, else by parent and name, and checked against the identity. A file that is gone gives ESTALE, on
which the kernel looks the path up again.

Nodes do not keep objects either: between operations, a node without an fd is a record (``records``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict

from cntr.cntrfs.backing import AS_IS
from cntr.cntrfs.copyup import CopyUps, is_one_of_several, is_same
from cntr.cntrfs.fds import BoundedFds
from cntr.cntrfs.handles import O_PATH, take_handle
from cntr.cntrfs.mounts import Mounts
from cntr.cntrfs.node import INO_MASK, ROOT_ID, BackingMount, Node, derived_handle, stale
from cntr.cntrfs.records import Records
from cntr.linux import file_syscalls
from cntr.linux.file_syscalls import Attributes, Handle, as_attributes

_GRAVEYARD = 65536  # forgotten nodes whose handles are kept for exported file handles


class NodeTable:
    """All nodes, by node id."""

    def __init__(
        self, root_fd: int, max_fds: int | None = None, raised: contextlib.AbstractContextManager[None] = AS_IS
    ) -> None:
        """root_fd: an O_PATH or real directory fd of the tree's root; the table owns it.

        raised: the scope to open by handle in.
        """
        self.nodes: dict[int, Node] = {}  # in use, or not suitable for a record
        self.idle: list[Node] = []  # to be checked by the next trim: new, or lost its fd or its user since the last one
        self.fds = BoundedFds(self._reopen, self.idle.append, max_fds)
        self.fds.reserve(root_fd)
        self.mounts = Mounts(self.fds, raised)
        self._records = Records(self.mounts.all)
        self._copy_ups = CopyUps(self.nodes)
        self._by_mount = self.mounts.by_id
        self._generation = 1
        self._graveyard: OrderedDict[int, tuple[BackingMount, Handle]] = OrderedDict()
        attributes = file_syscalls.statx(root_fd)
        self._found: tuple[int, ...] = attributes  # attributes read by the last reopening
        mount = self.mounts.of(attributes)
        mount.aliases[attributes.ino] = ROOT_ID
        self.root = Node(ROOT_ID, mount, attributes)
        mount.node = self.root
        self.root.fd = root_fd
        self.root.pinned = True
        self.root.lookups = 1
        self.nodes[ROOT_ID] = self.root
        self.mounts.probe_handles(mount, root_fd, b"")

    def get(self, nodeid: int) -> Node:
        """The node of a node id. Raises OSError (ESTALE)."""
        node = self.nodes.get(nodeid) or self._unpacked(nodeid)
        if node is None:
            raise stale()
        return node

    def known(self, nodeid: int) -> Node | None:
        """The node of a node id, None if there is none."""
        return self.nodes.get(nodeid) or self._unpacked(nodeid)

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self.nodes or nodeid in self._records

    def __len__(self) -> int:
        """How many nodes the kernel knows."""
        return len(self.nodes) + len(self._records)

    def ids(self) -> list[int]:
        """All node ids; for any thread."""
        return list(self.nodes) + self._records.ids()

    def directories(self) -> list[Node]:
        """All directories, read-only; for any thread."""
        return [node for node in list(self.nodes.values()) if node.is_directory] + self._records.directories()

    def _unpacked(self, nodeid: int) -> Node | None:
        node = self._records.take(nodeid)
        if node is not None:
            self.nodes[nodeid] = node
            self.idle.append(node)
        return node

    def used(self, node: Node, change: int) -> None:
        """Change the number of open files that refer to the node by CHANGE."""
        node.users += change
        if not node.users:
            self.fds.release_held(node)
            if node.fd < 0:
                self.idle.append(node)

    def see(self, attributes: Attributes, parent: Node, parent_fd: int, name: bytes, is_itself: bool = False) -> Node:
        """The node of a file that lookup found as NAME in parent, existing or new. Counts no lookup.

        is_itself: parent_fd is an O_PATH fd of the file instead.
        """
        mount = self._by_mount.get((attributes.mnt_id, attributes.dev_major, attributes.dev_minor))
        if mount is None:
            mount = self.mounts.of(attributes)
        nodeid = self.mounts.nodeid(mount, attributes.ino) if mount.aliases else mount.base | attributes.ino
        node = self.nodes.get(nodeid) or self._unpacked(nodeid)
        if mount.copies_up:
            node = self._copy_ups.find(mount, attributes, parent, name)
            if node is not None:
                self._named(node, parent, name)
                return node
            if is_one_of_several(attributes):
                nodeid = self.mounts.unused_id()
            elif nodeid in self.nodes:  # another file's, which has moved or was replaced
                nodeid = mount.aliases[attributes.ino] = self.mounts.unused_id()
        elif node is not None and self._same(node, attributes):
            if not node.packed_handle:
                self._named(node, parent, name)
            return node
        fresh = Node(nodeid, mount, attributes)
        if mount.handles is None:
            mount.node = mount.node or fresh
            self._named(fresh, parent, name)
            self.mounts.probe_handles(mount, parent_fd, b"" if is_itself else name)
        if mount.handles:
            take_handle(fresh, parent_fd, b"" if is_itself else name)
            self.mounts.note_generation(fresh)
        if not fresh.packed_handle or fresh is mount.node:
            self._named(fresh, parent, name)
        if not fresh.generation and not fresh.has_derived_handle:  # 0 is a valid generation too: mkfs(8) sets it
            self._generation += 1
            fresh.generation = self._generation & 0xFFFFFFFF or 1
        if node is not None:  # the inode number was reused: the lookup counts continue under the same node id
            fresh.lookups = node.lookups
            self.fds.close(node)
        self.nodes[nodeid] = fresh
        self.idle.append(fresh)
        return fresh

    def listed(
        self, attributes: tuple[int, ...], parent: Node, parent_fd: int, name: bytes
    ) -> tuple[int, int, BackingMount]:
        """(node id, generation, mount) of NAME in parent, as found by a listing, with one lookup counted.

        Like ``see``, but without creating an object that the kernel may never use. attributes: the fields of statx.
        """
        birth, birth_ns, ino, kind = attributes[13], attributes[14], attributes[7], attributes[6] & 0o170000
        mount = self._by_mount.get((attributes[23], attributes[21], attributes[22]))
        if mount is not None and mount.any_generation and not ino >> 32 and ino not in mount.aliases:
            nodeid = mount.base | ino
            if nodeid not in self.nodes:
                generation = self._records.enter(nodeid, birth * 1_000_000_000 + birth_ns, mount, kind >> 12)
                if generation:
                    return nodeid, generation, mount
        node = self.see(as_attributes(attributes), parent, parent_fd, name)
        node.lookups += 1
        return node.nodeid, node.generation, node.mount

    def find(self, attributes: Attributes, parent: Node, name: bytes) -> Node | None:
        """The node of this file, NAME in parent, if the kernel knows it."""
        mount = self._by_mount.get((attributes.mnt_id, attributes.dev_major, attributes.dev_minor))
        if mount is None:
            return None
        if mount.copies_up:
            return self._copy_ups.find(mount, attributes, parent, name)
        node = self.known(mount.aliases.get(attributes.ino) or mount.base | attributes.ino)
        return node if node is not None and self._same(node, attributes) else None

    @staticmethod
    def _same(node: Node, attributes: Attributes) -> bool:
        birth = attributes.btime * 1_000_000_000 + attributes.btime_ns
        return node.birth == birth and node.kind == attributes.mode & 0o170000

    # reopening

    def _reopen(self, node: Node) -> int:
        mount = node.mount
        if node.has_derived_handle:
            fd = self._open_by_ino(node)
        elif node.handle is not None:
            fd = self.mounts.open_by_handle(mount, node.handle)
        elif node.parent is not None:
            fd = self._reopen_by_name(node)
        else:
            raise stale()
        try:
            fields = file_syscalls.statx_fields(fd, b"", file_syscalls.OPENED)
            if fields is None:
                raise stale()
            self._found = fields
            if mount.copies_up:
                same = is_same(node, mount, as_attributes(fields))
            else:
                birth = fields[13] * 1_000_000_000 + fields[14]
                same = fields[7] == node.ino and birth == node.birth and node.kind == fields[6] & 0o170000
            if same and self._by_mount.get((fields[23], fields[21], fields[22])) is mount:
                return fd
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
        node.handle = None  # it was another file's: the next lookup records parent and name instead
        raise stale()

    def _open_by_ino(self, node: Node) -> int:
        mount = node.mount
        generation = 0 if mount.any_generation else node.generation
        return self.mounts.open_by_ino(mount.fd if mount.fd >= 0 else self.mounts.fd(mount), node.ino, generation)

    def open_silently(self, node: Node) -> int:
        """An O_PATH fd of a file that is held open, on the silent copy of its mount (devfuse)."""
        generation = 0 if node.mount.any_generation else node.generation
        return self.fds.retrying(lambda: self.mounts.open_by_ino(node.mount.silent_fd, node.ino, generation))

    def fd_while_open(self, node: Node) -> int:
        """``own_fd`` of a file that is held open: its inode number cannot be reused, so nothing is compared."""
        if node.fd < 0 and node.has_derived_handle and not node.mount.copies_up:
            self.fds.adopt(node, self.fds.retrying(lambda: self._open_by_ino(node)))
            return node.fd
        return self.fds.own_fd(node)

    def fd_and_mode(self, node: Node) -> tuple[int, int, int]:
        """(an O_PATH fd as from ``fd``, st_mode, the STATX_ATTR_* bits)."""
        if node.fd < 0:
            return self.fds.own_fd(node), self._found[6], self._found[2]
        return (fd := self.fds.own_fd(node)), *file_syscalls.mode_and_attributes(fd)

    def _reopen_by_name(self, node: Node) -> int:
        """Walk down from the nearest ancestor with an fd; the check at the end covers every step."""
        names = [node.name]
        above = node.parent
        while above is not None and above.fd < 0 and above.handle is None:
            names.append(above.name)
            above = above.parent
        if above is None:
            raise stale()
        fd = self.fds.fd(above)
        opened = -1
        try:
            for name in reversed(names):
                deeper = os.open(name, O_PATH, dir_fd=fd)
                if opened >= 0:
                    os.close(opened)
                fd = opened = deeper
        except OSError as error:
            if opened >= 0:
                os.close(opened)
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise stale() from None
            raise
        return opened

    # renamed files

    def _named(self, node: Node, parent: Node, name: bytes) -> None:
        if node.mount.copies_up:
            self._copy_ups.named(node, parent, name)
        if node is not self.root:
            node.parent, node.name = parent, name
            parent.is_parent = True

    def renamed(self, attributes: Attributes, parent: Node, name: bytes) -> Node | None:
        """The node of the file that is NAME in parent now, if the kernel knows it."""
        node = self.find(attributes, parent, name)
        if node is not None:
            self.moved(node, parent, name)
        return node

    def moved(self, node: Node, parent: Node, name: bytes) -> None:
        """Record the file's new name."""
        if not node.packed_handle or node.parent is not None:
            self._named(node, parent, name)

    def needs_trim(self) -> bool:
        """Whether ``trim`` has anything to do."""
        fds = self.fds
        return bool(self.idle) or len(fds.cached) > fds.max_fds

    def trim(self) -> None:
        """Close fds down to the limit, and turn unused nodes into records. Call between operations, never inside one."""
        self.fds.trim()
        if self.idle:
            for node in self.idle:
                if self.nodes.get(node.nodeid) is node and self._records.put(node):
                    del self.nodes[node.nodeid]
            self.idle.clear()

    # lookup counts

    def forget(self, nodeid: int, count: int) -> None:
        """FORGET: the kernel dropped COUNT references; at 0 the node is removed."""
        if nodeid in self._records:
            gone = self._records.forget(nodeid, count)
            if gone:
                self._bury(nodeid, *gone)
            return
        node = self.nodes.get(nodeid)
        if node is None or node is self.root:
            return
        node.lookups -= count
        if node.lookups <= 0:
            self.fds.close(node)
            del self.nodes[nodeid]
            if node.mount.copies_up:
                self._copy_ups.forgotten(node)
            self._bury(nodeid, node.mount, None if node.has_derived_handle else node.handle)

    def _bury(self, nodeid: int, mount: BackingMount, handle: Handle | None) -> None:
        if handle is not None:
            self._graveyard[nodeid] = mount, handle
            if len(self._graveyard) > _GRAVEYARD:
                self._graveyard.popitem(last=False)

    def revive(self, nodeid: int) -> Node:
        """A forgotten node, for an exported handle (a lookup of ``.``). Raises OSError (ESTALE: its file is gone)."""
        known = self._graveyard.get(nodeid)
        if known is None:
            mount = next((s for s in self.mounts.all if s.handles and s.base == nodeid & ~INO_MASK), None)
            ino = nodeid & INO_MASK
            if mount is None or ino >> 32:
                raise stale()
            # Generation 0 matches any in ext4's handles; the kernel compares the one we answer.
            known = mount, derived_handle(ino, 0)
        mount, handle = known
        try:
            fd = self.fds.retrying(lambda: self.mounts.open_by_handle(mount, handle))
        except OSError:
            raise stale() from None
        attributes = file_syscalls.statx(fd)
        if self.mounts.nodeid(mount, attributes.ino) != nodeid or attributes.nlink == 0:
            os.close(fd)
            raise stale()
        node = Node(nodeid, mount, attributes)
        take_handle(node, fd, b"")
        self.mounts.note_generation(node)
        if not node.has_derived_handle:
            node.generation = node.generation or 1
        self.nodes[nodeid] = node
        self.fds.adopt(node, fd)
        return node

    def close(self) -> None:
        """Close every fd, including the root's."""
        self.fds.close_cached()
        for node in self.nodes.values():
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
        self.mounts.close()
