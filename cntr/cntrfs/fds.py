"""The node table's bounded set of O_PATH fds: the least recently used are closed, pinned ones stay.

A file that lost its last name is pinned: only its fd leads to it. When no fd is free at all, the set gives up its own first.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict

from cntr.cntrfs.node import ROOT_ID, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NO_FD = (errno.EMFILE, errno.ENFILE)
GIVE_UPS = 3


class BoundedFds:
    """The O_PATH fds of nodes. The serving thread's alone."""

    def __init__(
        self, reopen: Callable[[Node], int], evicted: Callable[[Node], None], max_fds: int | None = None
    ) -> None:
        """reopen: opens a node's file anew; evicted: told of each node whose fd was closed because others were used more.

        max_fds: how many are kept, not counting pinned ones; None: a share of what the process may have.
        """
        self._reopen = reopen
        self._evicted = evicted
        self.max_fds = fd_budget() if max_fds is None else max_fds
        self.cached: OrderedDict[Node, None] = OrderedDict()  # by last use
        self._pins: dict[Node, None] = {}
        self._held: set[Node] = set()
        # What a binding keeps beside them, and sets:
        self.on_close: Callable[[Node], None] = lambda node: None  # the fd of a node with something ``open`` goes
        self.close_nameless: Callable[[int], None] = os.close  # of a file whose data goes with it: that may take long
        self.give_up_open: Callable[[], None] = lambda: None  # closes fds of open files that can do without

    def fd(self, node: Node) -> int:
        """A fd of the node's file for what O_PATH is enough for, valid until the next ``trim``."""
        return node.lent_fd if node.lent_fd >= 0 else self.own_fd(node)

    def own_fd(self, node: Node) -> int:
        """An O_PATH fd of the node's own, valid until the next ``trim``."""
        if node.fd >= 0:
            if not node.pinned:
                self.cached.move_to_end(node)
            return node.fd
        fd = self.retrying(lambda: self._reopen(node))
        node.fd = fd
        self.cached[node] = None
        return fd

    def adopt(self, node: Node, fd: int) -> None:
        """Keep an O_PATH fd that an operation opened for the node anyway."""
        if node.fd >= 0:
            os.close(fd)
            return
        node.fd = fd
        self.cached[node] = None

    def pin(self, node: Node, fd: int | None = None) -> None:
        """Keep the node's fd: its last name goes away now, and only the fd leads to the file from here on."""
        if fd is not None:
            self.adopt(node, fd)
        else:
            self.own_fd(node)
        self.cached.pop(node, None)
        self._held.discard(node)
        node.pinned = True
        self._pins[node] = None

    def unpin(self, node: Node) -> None:
        """The file has a name after all."""
        if node.pinned and node.nodeid != ROOT_ID:
            node.pinned = False
            self._pins.pop(node, None)
            self.cached[node] = None

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

    def trim(self) -> None:
        """Close the fds used longest ago, down to the limit. Called between operations, never inside one."""
        if len(self.cached) > self.max_fds:
            self._close_oldest(self.max_fds)

    def _close_oldest(self, keep: int) -> None:
        while len(self.cached) > keep:
            node, _ = self.cached.popitem(last=False)
            self._close_fd(node)
            self._evicted(node)

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
        for turn in range(GIVE_UPS):
            try:
                return opener()
            except OSError as error:
                if error.errno not in NO_FD:
                    raise
                self.give_up(turn)
        return opener()

    def give_up(self, turn: int) -> None:
        """Close what can be opened again, dearer with each TURN below GIVE_UPS: no fd was free."""
        (self._give_up_cached, self.give_up_open, self._give_up_pinned)[turn]()

    def _give_up_cached(self) -> None:
        self._close_oldest(min(3, self.max_fds))  # the fds an operation holds already are the newest

    def _give_up_pinned(self) -> None:
        """The older half: files without a name that the kernel remembers. Most are not open, and none will ask."""
        for node in list(self._pins)[: (len(self._pins) + 1) // 2]:
            self.close(node)
            self._held.discard(node)
            node.pinned = False

    def close(self, node: Node) -> None:
        """Close the node's fd, pinned or not; the root's stays."""
        if node.fd >= 0 and node.nodeid != ROOT_ID:
            self.cached.pop(node, None)
            self._pins.pop(node, None)
            self._held.discard(node)
            self._close_fd(node)

    def close_cached(self) -> None:
        """Close all but the pinned ones."""
        for node in list(self.cached):
            self.close(node)


def fd_budget() -> int:
    """How many O_PATH fds to keep: raises the soft limit to the hard one and leaves most of it for open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    return max(4, min(limit // 4, 4096))
