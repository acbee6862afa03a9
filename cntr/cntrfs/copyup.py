"""Files of an overlayfs change their inode number, device and birth time when they are copied up.

A lower file that is written, chmod'ed or linked becomes a file of the upper layer. The overlay's own inode stays, so an
open file or an O_PATH fd still leads to it, but statx(2) returns other values: always another birth time; another inode
number for hard links; and another device if the layers are on several filesystems
(Documentation/filesystems/overlayfs.rst, "Inode properties"). An overlay has no file handles by default either. So here
a file is identified by:

- an fd of its node, where the node has one: nodes of open files keep theirs;
- else its name and inode number;
- a single name, where a file has several: copying up one name of a lower file separates it from the others.
"""

from __future__ import annotations

import stat

from cntr.linux import file_syscalls
from cntr.linux.file_syscalls import Attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.node import BackingMount, Node

OVERLAYFS_MAGIC = 0x794C7630  # linux/magic.h


class CopyUps:
    """The names under which nodes of overlays were found."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        """nodes: the node table's, by node id."""
        self._nodes = nodes
        self._names: dict[tuple[int, bytes], int] = {}  # (the directory's node id, name) -> node id

    def named(self, node: Node, parent: Node, name: bytes) -> None:
        """Record that the node was found as NAME; it may have other names."""
        self._names[parent.nodeid, name] = node.nodeid

    def forgotten(self, node: Node) -> None:
        """Forget the node."""
        if node.parent is not None and self._names.get((node.parent.nodeid, node.name)) == node.nodeid:
            del self._names[node.parent.nodeid, node.name]

    def find(self, mount: BackingMount, attributes: Attributes, parent: Node, name: bytes) -> Node | None:
        """The node of the file that is NAME in parent now, if it was seen before."""
        node = self._nodes.get(self._names.get((parent.nodeid, name), 0))
        if node is not None and is_same(node, mount, attributes):
            return node
        if is_one_of_several(attributes):
            return None
        node = self._nodes.get(mount.aliases.get(attributes.ino) or mount.base | attributes.ino)
        return node if node is not None and is_same(node, mount, attributes) else None


def is_one_of_several(attributes: Attributes) -> bool:
    """Whether the file has other names, which copying up may turn into separate files."""
    return attributes.nlink > 1 and not stat.S_ISDIR(attributes.mode)


def is_same(node: Node, mount: BackingMount, attributes: Attributes) -> bool:
    """Whether a file with these attributes is the node's; if so, update the node."""
    if node.kind != attributes.mode & 0o170000:
        return False
    birth = attributes.btime * 1_000_000_000 + attributes.btime_ns
    fd = node.lent_fd if node.lent_fd >= 0 else node.fd
    unchanged = node.ino == attributes.ino and node.mount is mount
    if unchanged and node.birth == birth:
        return True
    if fd >= 0:
        now = file_syscalls.statx(fd)
        if _identity(now) != _identity(attributes):
            return False
    elif not unchanged:
        return False
    node.ino, node.birth = attributes.ino, birth
    if node.mount is not mount or not unchanged:
        node.mount = mount
        if not is_one_of_several(attributes):
            mount.aliases[attributes.ino] = node.nodeid
    return True


def _identity(attributes: Attributes) -> tuple[int, ...]:
    a = attributes
    return a.dev_major, a.dev_minor, a.ino, a.btime, a.btime_ns
