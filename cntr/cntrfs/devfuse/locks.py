"""flock, POSIX and OFD locks of the mount's clients, taken on the backing file so that all the world sees them.

A lock owner of the kernel (a process, or an open file for OFD locks) gets an open file description of its own, and
locks there with F_OFD_*: the server's own POSIX locks would all belong to one process, the server. flock(2) locks
belong to the open file, so they are taken on the handle's fd. A lock that must wait does so in a thread, which
FUSE_INTERRUPT ends by a signal. What is lost: EDEADLK, which the kernel doesn't look for among OFD locks.
"""

from __future__ import annotations

import _signal as signal
import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.core import errno_of
from cntr.cntrfs.devfuse import wire
from cntr.linux import file_syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.devfuse.request import Connection
    from cntr.cntrfs.files import FileHandle
    from cntr.cntrfs.node import Node

_END = (1 << 63) - 1  # OFFSET_MAX, the kernel's "to the end of the file"
_RETRY = 0.02  # seconds between two signals to a waiting thread


class Owner:
    """One lock owner on one node, with the fd that holds its locks."""

    __slots__ = ("fd", "handles", "pid", "ranges")

    def __init__(self, fd: int) -> None:
        """handles: the open files it locked through; ranges: (start, end, kind) held, to say whose a lock is."""
        self.fd = fd
        self.pid = 0
        self.handles: set[int] = set()
        self.ranges: list[tuple[int, int, int]] = []

    def note(self, start: int, end: int, kind: int) -> None:
        """The range is locked as KIND now, or unlocked."""
        kept = []
        for low, high, held in self.ranges:
            if high < start or low > end:
                kept.append((low, high, held))
                continue
            if low < start:
                kept.append((low, start - 1, held))
            if high > end:
                kept.append((end + 1, high, held))
        if kind != fcntl.F_UNLCK:
            kept.append((start, end, kind))
        self.ranges = kept


class Waiter:
    """A lock request that waits in a thread."""

    __slots__ = ("done", "interrupted", "thread")

    def __init__(self, thread: threading.Thread) -> None:
        """interrupted: the client gave up."""
        self.thread = thread
        self.interrupted = False
        self.done = threading.Event()


class Locks:
    """All locks of one connection."""

    def __init__(self, connection: Connection) -> None:
        """connection: where waiting requests are answered."""
        self.connection = connection
        self._owners: dict[int, dict[int, Owner]] = {}  # node id -> kernel's owner -> Owner
        self._waiters: dict[int, Waiter] = {}  # request -> its thread

    def _owner(self, node: Node, fh: int, number: int, pid: int) -> Owner:
        owners = self._owners.setdefault(node.nodeid, {})
        owner = owners.get(number)
        if owner is None:
            owner = owners[number] = Owner(self._open(node))
        owner.handles.add(fh)
        owner.pid = pid or owner.pid
        return owner

    def _open(self, node: Node) -> int:
        nodes = self.connection.core.nodes
        path = proc_path(nodes.fd(node))
        try:
            return nodes.open_retrying(path, os.O_RDWR | os.O_NONBLOCK)
        except OSError:  # a read-only filesystem, a running program: a read lock is still possible
            return nodes.open_retrying(path, os.O_RDONLY | os.O_NONBLOCK)

    # requests

    def get(self, handle: FileHandle, fh: int, number: int, start: int, end: int, kind: int, pid: int) -> bytes:
        """GETLK: the lock that stands in the way, or F_UNLCK."""
        owner = self._owner(handle.node, fh, number, pid)
        length = 0 if end >= _END else end - start + 1
        kind, found, length = file_syscalls.ofd_lock(owner.fd, file_syscalls.F_OFD_GETLK, kind, start, length)
        if kind == fcntl.F_UNLCK:
            return wire.LK_OUT.pack(0, 0, fcntl.F_UNLCK, 0)
        found_end = found + length - 1 if length else _END
        return wire.LK_OUT.pack(found, found_end, kind, self._pid_of(handle.node, owner, found, found_end))

    def _pid_of(self, node: Node, asker: Owner, start: int, end: int) -> int:
        for owner in self._owners.get(node.nodeid, {}).values():
            if owner is not asker and any(low <= end and high >= start for low, high, _ in owner.ranges):
                return owner.pid
        return 0  # someone outside of this mount

    def set(
        self, handle: FileHandle, fh: int, number: int, start: int, end: int, kind: int, pid: int, wait: bool
    ) -> bool:
        """SETLK and SETLKW of a POSIX or OFD lock; False: it waits, and a thread answers."""
        owner = self._owner(handle.node, fh, number, pid)
        length = 0 if end >= _END else end - start + 1
        try:
            file_syscalls.ofd_lock(owner.fd, file_syscalls.F_OFD_SETLK, kind, start, length)
        except OSError as error:
            if not wait or error.errno not in (errno.EAGAIN, errno.EACCES):
                raise

            def lock() -> None:
                file_syscalls.ofd_lock(owner.fd, file_syscalls.F_OFD_SETLKW, kind, start, length)
                owner.note(start, end, kind)

            def undo() -> None:
                file_syscalls.ofd_lock(owner.fd, file_syscalls.F_OFD_SETLK, fcntl.F_UNLCK, start, length)
                owner.note(start, end, fcntl.F_UNLCK)

            self._wait(lock, undo)
            return False
        owner.note(start, end, kind)
        return True

    def flock(self, handle: FileHandle, kind: int, wait: bool) -> bool:
        """SETLK and SETLKW of a flock(2) lock; False: it waits, and a thread answers."""
        fd = self.connection.core.file_fd(handle)
        operation = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX}.get(kind, fcntl.LOCK_UN)
        try:
            file_syscalls.flock(fd, operation | fcntl.LOCK_NB)
        except OSError as error:
            if not wait or error.errno != errno.EWOULDBLOCK:
                raise
            self._wait(lambda: file_syscalls.flock(fd, operation), lambda: file_syscalls.flock(fd, fcntl.LOCK_UN))
            return False
        return True

    # waiting

    def _wait(self, lock: Callable[[], object], undo: Callable[[], object]) -> None:
        connection = self.connection
        unique = connection.unique
        heartbeat = connection.workers.heartbeat

        def run() -> None:
            waiter = self._waiters[unique]
            number = 0
            try:
                while True:
                    try:
                        lock()
                        break
                    except InterruptedError:
                        if waiter.interrupted:
                            raise
            except Exception as error:  # noqa: BLE001  every mistake becomes an answer
                number = errno_of(error)
            self._waiters.pop(unique, None)
            waiter.done.set()
            heartbeat.park(-1)
            if not number and waiter.interrupted:
                undo()  # granted at the very moment the client gave up
                number = errno.EINTR
            if number:
                connection.fail(unique, number)
            else:
                connection.answer(unique, None)

        heartbeat.park(1)
        thread = threading.Thread(target=run, name="lock", daemon=True)
        self._waiters[unique] = Waiter(thread)
        thread.start()

    def interrupt(self, unique: int) -> None:
        """INTERRUPT: the client of the request UNIQUE got a signal."""
        waiter = self._waiters.get(unique)
        if waiter is None:
            return
        waiter.interrupted = True

        def signal_until_done() -> None:
            # The thread may not have entered its system call yet: such a signal would be lost.
            while not waiter.done.is_set():
                try:
                    if waiter.thread.ident is not None:
                        signal.pthread_kill(waiter.thread.ident, signal.SIGUSR2)
                except ProcessLookupError:
                    return
                waiter.done.wait(_RETRY)

        threading.Thread(target=signal_until_done, name="interrupt", daemon=True).start()

    # releasing

    def flushed(self, node: Node, number: int) -> None:
        """FLUSH: the owner closed a fd of the file, and by POSIX loses all its locks on it."""
        owners = self._owners.get(node.nodeid)
        if owners and number in owners:
            self._drop(node, owners, number)

    def released(self, handle: FileHandle, fh: int) -> None:
        """RELEASE: an open file is gone for good, and with it the owners that knew the file through it alone."""
        owners = self._owners.get(handle.node.nodeid)
        if not owners:
            return
        for number, owner in list(owners.items()):
            owner.handles.discard(fh)
            if not owner.handles:
                self._drop(handle.node, owners, number)

    def _drop(self, node: Node, owners: dict[int, Owner], number: int) -> None:
        os.close(owners.pop(number).fd)
        if not owners:
            self._owners.pop(node.nodeid, None)

    def close(self) -> None:
        """Let everything go, waiting requests too."""
        for unique in list(self._waiters):
            self.interrupt(unique)
        for owners in self._owners.values():
            for owner in owners.values():
                os.close(owner.fd)
        self._owners.clear()
