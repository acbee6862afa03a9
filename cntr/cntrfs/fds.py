"""The node table's bounded set of O_PATH fds: the least recently used are closed, pinned ones stay.

A file that lost its last name is pinned: only its fd leads to it. When the process has no free fd, the set closes its
own first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
from collections import OrderedDict

from cntr.cntrfs.node import ROOT_ID, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NO_FD = (errno.EMFILE, errno.ENFILE)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
GIVE_UPS = 3
LARGE_BLOCKS = (64 << 20) // 512  # of a file whose freeing takes long
_BESIDE = 512  # fds of open files and of the server itself


class BoundedFds:
    """The O_PATH fds of nodes. For the serving thread only."""

    def __init__(
        self, reopen: Callable[[Node], int], evicted: Callable[[Node], None], max_fds: int | None = None
    ) -> None:
        """reopen: reopens a node's file; evicted: called with each node whose fd was closed as least recently used.

        max_fds: how many are kept, without pinned ones; None: a share of the process's limit.
        """
        self._reopen = reopen
        self._evicted = evicted
        self.max_fds = fd_budget() if max_fds is None else max_fds
        self.cached: OrderedDict[Node, None] = OrderedDict()  # least recently used first
        self._pins: dict[Node, bool] = {}  # whether the file is known to be small
        self._held: set[Node] = set()
        # Set by a binding that keeps state beside the fds:
        self.on_close: Callable[[Node], None] = lambda node: None  # the fd of a node with ``open`` state is closed
        # closes the last fd of a file without a name: freeing its data may take long
        self.close_nameless: Callable[[int], None] = os.close
        self.give_up_open: Callable[[], None] = lambda: None  # closes fds of open files that are not needed

    def reserve(self, fd: int) -> None:
        """Grow the process's table of fds to what may be needed. fd: any open one.

        Later, with threads, each doubling of the table waits for an RCU grace period (expand_fdtable()), 10 ms or more.
        """
        with contextlib.suppress(OSError):  # the limit is lower
            os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self.max_fds + _BESIDE))

    def fd(self, node: Node) -> int:
        """An fd of the node's file, good for what O_PATH permits, valid until the next ``trim``."""
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
        """Keep an O_PATH fd that an operation has opened for the node."""
        if node.fd >= 0:
            os.close(fd)
            return
        node.fd = fd
        self.cached[node] = None

    def pin(self, node: Node, fd: int | None = None, *, is_small: bool = False) -> None:
        """Keep the node's fd: its last name is being removed, and from now on only the fd leads to the file.

        is_small: it has few blocks, and nobody has it open.
        """
        if fd is not None:
            self.adopt(node, fd)
        else:
            self.own_fd(node)
        self.cached.pop(node, None)
        self._held.discard(node)
        node.pinned = True
        self._pins[node] = is_small

    def may_grow(self, node: Node) -> None:
        """Somebody has opened a pinned node's file."""
        if node in self._pins:
            self._pins[node] = False

    def unpin(self, node: Node) -> None:
        """Undo ``pin``: the file has a name after all."""
        if node.pinned and node.nodeid != ROOT_ID:
            node.pinned = False
            self._pins.pop(node, None)
            self.cached[node] = None

    def hold(self, node: Node) -> None:
        """Keep the node's fd while the file is open, if nothing else identifies the file later."""
        if not node.pinned:
            self.pin(node)
            self._held.add(node)

    def is_held(self, node: Node) -> bool:
        """Whether only ``hold`` keeps its fd."""
        return node in self._held

    def release_held(self, node: Node) -> None:
        """Undo ``hold``: the file is no longer open."""
        if node in self._held:
            self._held.discard(node)
            self.unpin(node)

    def trim(self) -> None:
        """Close the least recently used fds, down to the limit. Call between operations, never inside one."""
        if len(self.cached) > self.max_fds:
            self._close_oldest(self.max_fds)

    def _close_oldest(self, keep: int) -> None:
        while len(self.cached) > keep:
            node, _ = self.cached.popitem(last=False)
            self._close_fd(node)
            self._evicted(node)

    def _close_fd(self, node: Node, is_small: bool = False) -> None:
        fd, node.fd = node.fd, -1
        if node.open is not None:
            self.on_close(node)
        (self.close_nameless if node.pinned and not is_small else os.close)(fd)

    def open_retrying(self, path: bytes, flags: int) -> int:
        """open(2), close-on-exec, through ``retrying``."""
        return self.retrying(lambda: os.open(path, flags | os.O_CLOEXEC))

    def retrying(self, opener: Callable[[], int]) -> int:
        """Call OPENER, which opens an fd. If no fd is free, close some of the table's and retry."""
        for turn in range(GIVE_UPS):
            try:
                return opener()
            except OSError as error:
                if error.errno not in NO_FD:
                    raise
                self.give_up(turn)
        return opener()

    def give_up(self, turn: int) -> None:
        """Close fds that can be reopened, at a cost that grows with each TURN below GIVE_UPS: no fd was free."""
        (self._give_up_cached, self.give_up_open, self._give_up_pinned)[turn]()

    def _give_up_cached(self) -> None:
        self._close_oldest(min(3, self.max_fds))  # the newest ones may be held by the current operation

    def _give_up_pinned(self) -> None:
        """Close the older half of the pinned fds: files without a name that the kernel still knows. Most are not open
        and never used again.
        """
        for node in list(self._pins)[: (len(self._pins) + 1) // 2]:
            self.close(node)
            self._held.discard(node)
            node.pinned = False

    def give_up_removed(self) -> bool:
        """Close the fds of removed files that nobody has open, as there is no space left; return
        whether there were any.

        Most are about to be forgotten anyway, but the kernel sends a FORGET only after the next
        request.
        """
        removed = [node for node in self._pins if not node.users and not node.is_directory and node not in self._held]
        for node in removed:
            self.close(node)
            node.pinned = False
        return bool(removed)

    def close(self, node: Node) -> None:
        """Close the node's fd, pinned or not, except the root's."""
        if node.fd >= 0 and node.nodeid != ROOT_ID:
            self.cached.pop(node, None)
            self._held.discard(node)
            self._close_fd(node, self._pins.pop(node, False))

    def close_cached(self) -> None:
        """Close all except the pinned ones."""
        for node in list(self.cached):
            self.close(node)


def fd_budget() -> int:
    """How many O_PATH fds to keep. Raises the soft limit to the hard one and leaves most of it for open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    return max(4, min(limit // 4, 4096))
