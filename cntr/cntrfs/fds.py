"""The bounded set of O_PATH fds of a node table: the ones used longest ago are closed, pinned ones stay.

A file that lost its last name is pinned: only its fd leads to it. When no fd is free at all, the set gives up its own first.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from typing import TYPE_CHECKING

from cntr.cntrfs.node import Node
from cntr.cntrfs.records import Records

if TYPE_CHECKING:
    from collections.abc import Callable


class BoundedFds:
    """The part of the node table that opens and closes."""

    nodes: dict[int, Node]
    root: Node
    max_fds: int
    on_close: Callable[[Node], None]
    close_nameless: Callable[[int], None]
    give_up_open: Callable[[], None]
    _records: Records
    _idle: list[Node]
    _lru: OrderedDict[Node, None]
    _pins: dict[Node, None]
    _held: set[Node]

    def _reopen(self, node: Node) -> int:
        raise NotImplementedError

    def fd(self, node: Node) -> int:
        """A fd of the node's file for what O_PATH is enough for, valid until the next ``trim``."""
        return node.lent_fd if node.lent_fd >= 0 else self.own_fd(node)

    def own_fd(self, node: Node) -> int:
        """An O_PATH fd of the node's own, valid until the next ``trim``."""
        if node.fd >= 0:
            if not node.pinned:
                self._lru.move_to_end(node)
            return node.fd
        fd = self.retrying(lambda: self._reopen(node))
        node.fd = fd
        self._lru[node] = None
        return fd

    def adopt(self, node: Node, fd: int) -> None:
        """Keep an O_PATH fd that an operation opened for the node anyway."""
        if node.fd >= 0:
            os.close(fd)
            return
        node.fd = fd
        self._lru[node] = None

    def pin(self, node: Node, fd: int | None = None) -> None:
        """Keep the node's fd: its last name goes away now, and only the fd leads to the file from here on."""
        if fd is not None:
            self.adopt(node, fd)
        else:
            self.own_fd(node)
        self._lru.pop(node, None)
        self._held.discard(node)
        node.pinned = True
        self._pins[node] = None

    def unpin(self, node: Node) -> None:
        """The file has a name after all."""
        if node.pinned and node is not self.root:
            node.pinned = False
            self._pins.pop(node, None)
            self._lru[node] = None

    def hold(self, node: Node) -> None:
        """Keep the node's fd while the file is open, where nothing else tells that it is the same file afterwards."""
        if not node.pinned:
            self.pin(node)
            self._held.add(node)

    def is_held(self, node: Node) -> bool:
        """Is its fd kept by ``hold`` alone?"""
        return node in self._held

    def release_held(self, node: Node) -> None:
        """It is open no more."""
        if node in self._held:
            self._held.discard(node)
            self.unpin(node)

    def needs_trim(self) -> bool:
        """Would ``trim`` find anything to do?"""
        return bool(self._idle) or len(self._lru) > self.max_fds

    def trim(self) -> None:
        """Close the fds used longest ago, down to the limit. Called between operations, never inside one."""
        if len(self._lru) > self.max_fds:
            self._close_oldest(self.max_fds)
        if self._idle:
            for node in self._idle:
                if self.nodes.get(node.nodeid) is node and self._records.put(node):
                    del self.nodes[node.nodeid]
            self._idle.clear()

    def _close_oldest(self, keep: int) -> None:
        while len(self._lru) > keep:
            node, _ = self._lru.popitem(last=False)
            self._close_fd(node)
            self._idle.append(node)

    def _close_fd(self, node: Node) -> None:
        fd, node.fd = node.fd, -1
        if node.open is not None:
            self.on_close(node)
        (self.close_nameless if node.pinned else os.close)(fd)

    def open_retrying(self, path: bytes, flags: int) -> int:
        """open(2), close-on-exec, by ``retrying``."""
        return self.retrying(lambda: os.open(path, flags | os.O_CLOEXEC))

    def retrying(self, opener: Callable[[], int]) -> int:
        """Call what opens a fd; when no fd is free the table gives up its own and it is called again."""
        for give_up in (self._give_up_cached, self.give_up_open, self._give_up_pinned):
            try:
                return opener()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                give_up()
        return opener()

    def _give_up_cached(self) -> None:
        self._close_oldest(min(3, self.max_fds))  # the fds an operation holds already are the newest

    def _give_up_pinned(self) -> None:
        """The older half: files without a name that the kernel remembers. Most are not open, and none will ask."""
        for node in list(self._pins)[: (len(self._pins) + 1) // 2]:
            self._close(node)
            self._held.discard(node)
            node.pinned = False

    def _close(self, node: Node) -> None:
        if node.fd >= 0 and node is not self.root:
            self._lru.pop(node, None)
            self._pins.pop(node, None)
            self._held.discard(node)
            self._close_fd(node)


def fd_budget() -> int:
    """How many O_PATH fds to keep: raises the soft limit to the hard one and leaves most of it for open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    return max(4, min(limit // 4, 4096))
