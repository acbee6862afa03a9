"""What handlers share: the state of the connection, the header of the current request, and answering it.

Only the serving thread calls handlers, and touches the core, the passthrough and the connection's fields. Any thread
may use ``replies`` and the heartbeat. The ticker's thread may use ``locks``, through the task registered there. Workers
use what their jobs were given.
"""

from __future__ import annotations

import functools
import os

from cntr.cntrfs.backing import AS_IS, Caller, proc_path
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.lent import Lent
from cntr.cntrfs.devfuse.locks import Locks, RemoteLocks
from cntr.cntrfs.devfuse.passthrough import Passthrough
from cntr.cntrfs.devfuse.replies import NO_ANSWER, Replies, TracedReplies
from cntr.cntrfs.devfuse.ticker import Ticker
from cntr.cntrfs.devfuse.wire import new_encode_dev
from cntr.cntrfs.devfuse.workers import Job, Workers
from cntr.cntrfs.fds import GIVE_UPS, LARGE_BLOCKS, NO_FD
from cntr.cntrfs.node import INO_MASK
from cntr.cntrfs.trace import Trace
from cntr.linux import credentials, file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from typing import Any

    from cntr.cntrfs.core import Core
    from cntr.cntrfs.files import FileHandle
    from cntr.cntrfs.heartbeat import Heartbeat
    from cntr.cntrfs.node import BackingMount, Node
    from cntr.linux.file_syscalls import Attributes

_pack_entry = wire.ENTRY_OUT.pack
_pack_attr = wire.ATTR_OUT.pack


_AGAIN = object()
MAX_IO = 1 << 20  # bytes in one READ or WRITE, as agreed in INIT


class Connection:
    """The connection: what INIT agreed on, the header of the current request, and its answer."""

    def __init__(self, fuse_fd: int, core: Core, heartbeat: Heartbeat) -> None:
        """fuse_fd: answers are written to it."""
        self.fd = fuse_fd
        self.core = core
        core.mounts.may_wait = False
        self.flags = 0
        self.local_locks = False  # the kernel keeps the locks of this tree, for its own clients only
        self.minor = wire.MINOR_VERSION
        self.header: tuple[int, ...] = (0,) * 8  # of the current request: struct fuse_in_header
        options = core.options
        (entry, entry_ns), (attr, attr_ns) = wire.timeout(options.entry_timeout), wire.timeout(options.attr_timeout)
        self._timeouts = entry, attr, entry_ns, attr_ns
        self._timeouts_mapped = entry, 0, entry_ns, 0
        self._spent_for = 0  # the last request that was handled again as one whom no quota binds
        self.other_nodeid = 0  # second file of the current request, or of an earlier one
        self.keep_cache = options.keep_cache
        self.cache_directories = options.cache == "auto"
        self.direct_io = options.cache == "none"
        self.passthrough = Passthrough(fuse_fd, core)
        self.mapped = self.passthrough.mapped
        self.scratch = memoryview(bytearray(MAX_IO))  # buffer for data read on behalf of the kernel
        self.heartbeat = heartbeat
        self.trace = Trace() if core.options.trace else None
        self.replies = TracedReplies(fuse_fd, self.trace) if self.trace is not None else Replies(fuse_fd)
        self.answer, self.fail = self.replies.answer, self.replies.fail
        self.ticker = Ticker()
        self.workers = Workers(self.replies, heartbeat, self.ticker)
        self.locks = Locks(core, self.replies, heartbeat, self.ticker)
        self.unsynced: dict[
            int, OSError
        ] = {}  # what another handle's fsync met: by the number of each that wasn't told
        self.remote_locks: dict[int, Locks] = {}  # by mount index

        core.fds.close_nameless = self._close_nameless
        core.fds.give_up_open = self._let_go_of_all

    def _close_nameless(self, fd: int) -> None:
        if file_syscalls.allocated(fd) >= LARGE_BLOCKS:
            found = file_syscalls.statx(fd, b"", file_syscalls.AT_EMPTY_PATH | file_syscalls.AT_STATX_DONT_SYNC)
            self.workers.run(lambda: os.close(fd), os.makedev(found.dev_major, found.dev_minor))
        else:
            os.close(fd)

    def locks_on(self, node: Node, *, wanted: bool = False) -> Locks:
        """The locks of the node's filesystem. A filesystem that may block has its own, used by workers.

        wanted: a lock is about to be taken.
        """
        if not wanted and not self.remote_locks:
            return self.locks
        index = node.mount.index
        if wanted and node.mount.is_remote and index not in self.remote_locks:
            try:
                self.remote_locks[index] = RemoteLocks(self.core, self.replies, self.heartbeat)
            except RuntimeError:  # no thread can be started
                self.remote_locks[index] = self.locks
        return self.remote_locks.get(index, self.locks)

    def can_let_go(self, handle: FileHandle, fh: int) -> bool:
        """Whether nothing depends on the handle's fd, so that it may be closed and reopened when needed."""
        if not handle.passthrough or handle.fd < 0 or self.locks_on(handle.node).holds_flock(handle, fh):
            return False
        return not self.workers.are_using(handle.node.nodeid)

    def let_go(self, handle: FileHandle, fh: int) -> None:
        """Close the handle's fd if possible."""
        if not self.can_let_go(handle, fh):
            return
        if handle.node.mount.is_remote:
            fd = self.core.files.detach(handle)
            self.workers.run(lambda: os.close(fd), handle.node.mount.dev)
        else:
            self.core.files.close(handle)

    def _let_go_of_all(self) -> None:
        """No fd is free: close those of open files that the kernel reads and writes itself, except the current
        request's.
        """
        for fh, handle in self.core.files.handles.items():
            if handle.node.nodeid not in (self.header[3], self.other_nodeid):
                self.let_go(handle, fh)

    def interrupt(self, unique: int) -> None:
        """The client of request UNIQUE got a signal."""
        known = self.locks.interrupt(unique) or self.workers.interrupt(unique)
        for index, locks in self.remote_locks.items():
            if locks is not self.locks:
                self.workers.run(functools.partial(locks.interrupt, unique), self.core.mounts.all[index].dev)
        if not known and self.replies.rings is not None:
            self.replies.rings.interrupted(unique)

    def close(self) -> None:
        """Release what is held for the kernel."""
        for locks in (self.locks, *self.remote_locks.values()):
            locks.close()
        self.passthrough.close()
        self.workers.close()
        self.ticker.close()

    # workers

    def submit(
        self, node: Node, work: Callable[[Job], bytes | None], *, is_interruptible: bool = False, other: int = 0
    ) -> bytes:
        """Have a worker answer the current request with the result of WORK. Returns NO_ANSWER."""
        self.workers.submit(self.header, work, node.mount.dev, is_interruptible=is_interruptible, other=other)
        return NO_ANSWER

    def defer(
        self,
        node: Node,
        work: Callable[[Job], Any],
        then: Callable[[Any], bytes | None],
        *,
        is_interruptible: bool = False,
    ) -> bytes:
        """Have a worker run WORK; THEN makes the answer of its result, in this thread. Returns NO_ANSWER."""
        self.workers.defer(self.header, work, then, node.mount.dev, is_interruptible=is_interruptible)
        return NO_ANSWER

    def on(
        self, nodeids: tuple[int, ...], do: Callable[[Core], Any], then: Callable[[Any], bytes | None]
    ) -> bytes | None:
        """Answer with THEN(DO's result). DO is an operation of the core on these nodes.

        If one of the nodes is on a filesystem that may block, a worker runs DO with a lent core.
        """
        core = self.core
        if core.mounts.any_remote:
            nodes = [core.nodes.get(nodeid) for nodeid in nodeids]
            for node in nodes:
                if node.mount.is_remote:
                    return self.elsewhere(nodes, do, then, node.mount.dev)
        return then(do(core))

    def elsewhere(
        self, nodes: list[Node], do: Callable[[Core], Any], then: Callable[[Any], bytes | None], lane: int
    ) -> bytes:
        """``on``, always by a worker. Returns NO_ANSWER."""
        self._try_elsewhere([node.nodeid for node in nodes], do, then, lane, 0)
        return NO_ANSWER

    def _try_elsewhere(
        self,
        nodeids: list[int],
        do: Callable[[Core], Any],
        then: Callable[[Any], bytes | None],
        lane: int,
        turn: int,
    ) -> bytes | None:
        """turn: how often no fd was free for it."""
        lent = Lent(self.core, [self.core.nodes.get(nodeid) for nodeid in nodeids])

        def work(job: Job) -> Any:
            try:
                return lent.act(do)
            except OSError as error:
                if error.errno not in NO_FD or turn == GIVE_UPS:
                    raise
                return _AGAIN

        def answer(result: Any) -> bytes | None:
            if result is not _AGAIN:
                return then(lent.settled(result))
            self.core.fds.give_up(turn)
            return self._try_elsewhere(nodeids, do, then, lane, turn + 1)

        self.workers.defer(self.header, work, answer, lane)
        return NO_ANSWER

    def ready(self, handle: FileHandle, go: Callable[[], bytes | None]) -> bytes | None:
        """Call GO once the handle has an fd; reopening it may block."""
        if handle.fd >= 0 or not handle.node.mount.is_remote:
            self.core.files.fd(handle)
            return go()
        nodeid, wanted = handle.node.nodeid, handle.flags & (os.O_ACCMODE | os.O_APPEND) | os.O_CLOEXEC

        def opened(fd: int) -> bytes | None:
            if handle.fd < 0:
                handle.fd = fd
            else:
                os.close(fd)
            return go()

        return self.on((nodeid,), lambda core: os.open(proc_path(core.fds.fd(core.nodes.get(nodeid))), wanted), opened)

    # the current request

    @property
    def unique(self) -> int:
        """The request's number."""
        return self.header[2]

    @property
    def extensions(self) -> int:
        """The length of what follows its arguments, in units of 8 bytes."""
        return self.header[7]

    def caller(self, umask: int = 0, groups: tuple[int, ...] = ()) -> Caller:
        """The caller; groups: those that the kernel sent."""
        _, _, _, _, uid, gid, pid, _ = self.header
        return Caller(uid, gid, pid, umask, groups)

    def more_room(self) -> contextlib.AbstractContextManager[None] | None:
        """The current request found no room: the scope to handle it again in, None if that would change nothing."""
        if self.core.fds.give_up_removed():
            return AS_IS
        scope = self.core.credentials.spending()
        if scope is AS_IS or self._spent_for == self.unique:
            return None
        self._spent_for = self.unique
        return scope if self.caller().is_capable(credentials.CAP_SYS_RESOURCE) else None

    # parts of answers

    def timeouts(self, mount: BackingMount, nodeid: int = 0) -> tuple[int, int, int, int]:
        """(entry seconds, attribute seconds, entry ns, attribute ns) for a file of this mount."""
        if mount.watched and nodeid < _SYNTHETIC:  # the watch identifies files by inode number
            return _WATCHED if nodeid not in self.mapped else _WATCHED_MAPPED
        if mount.is_pseudo:
            return _NEVER
        return self._timeouts if nodeid not in self.mapped else self._timeouts_mapped

    def entry(self, node: Node, a: Attributes, parent: int | None = None) -> bytes:
        """struct fuse_entry_out of a node; parent as in ``entry_of``."""
        return self.entry_of(node.nodeid, node.generation, node.mount, a, parent)

    def entry_of(
        self, nodeid: int, generation: int, mount: BackingMount, a: tuple[int, ...], parent: int | None
    ) -> bytes:
        """struct fuse_entry_out. parent: node id of the directory, if the name may lead into another mount.

        Such a name has a short timeout: nobody reports a mount that came and went between two reads of mountinfo.
        """
        (_, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _, atime, atime_ns, _, _, ctime, ctime_ns, mtime,
         mtime_ns, major, minor, _, _, _) = a  # fmt: skip
        if mount.forbids:
            mode, major, minor = mount.allowed(mode, major, minor)
        if parent is not None and mount.watched and (parent ^ nodeid) & ~INO_MASK:
            timeouts = self._timeouts_mapped
        elif mount.watched and nodeid < _SYNTHETIC and nodeid not in self.mapped:  # the result of timeouts()
            timeouts = _WATCHED
        else:
            timeouts = self.timeouts(mount, nodeid)
        return _pack_entry(
            nodeid, generation, *timeouts,
            mount.base | ino if mount.base and ino <= INO_MASK else ino, size, blocks, atime, mtime, ctime, atime_ns,
            mtime_ns, ctime_ns, mode, nlink, uid, gid, new_encode_dev(major, minor) if major or minor else 0, blksize, 0,
        )  # fmt: skip

    def attr(self, node: Node, a: Attributes) -> bytes:
        """struct fuse_attr_out."""
        (_, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _, atime, atime_ns, _, _, ctime, ctime_ns, mtime,
         mtime_ns, major, minor, _, _, _) = a  # fmt: skip
        mount = node.mount
        if mount.forbids:
            mode, major, minor = mount.allowed(mode, major, minor)
        _, seconds, _, nanoseconds = self.timeouts(mount, node.nodeid)
        return _pack_attr(
            seconds, nanoseconds, 0,
            mount.base | ino if mount.base and ino <= INO_MASK else ino, size, blocks, atime, mtime, ctime, atime_ns,
            mtime_ns, ctime_ns, mode, nlink, uid, gid, new_encode_dev(major, minor) if major or minor else 0, blksize, 0,
        )  # fmt: skip


_SYNTHETIC = 1 << 63
_WATCHED = 86400, 86400, 0, 0  # the kernel is told of changes behind the mount
_WATCHED_MAPPED = 86400, 0, 0, 0
_NEVER = 0, 0, 0, 0
