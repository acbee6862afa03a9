"""flock, POSIX and OFD locks of the clients, taken on the backing file so that everybody sees them.

Each lock owner of the kernel (a process, or an open file for OFD locks) gets an open file description and takes locks
on it with F_OFD_*. POSIX locks would all belong to one process, the server, and would be lost when it closes any fd of
the file. flock(2) locks belong to the open file, so they are taken on the handle's fd.

Waiting takes no thread. A lock held by another client is retried when that client releases it; a lock held outside the
mount is retried by the ticker, with growing intervals. A waiter's owner keeps its description while it waits: closing
another fd of the file costs a process the locks it holds, not those it waits for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from time import monotonic

from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.lock_table import END, FileLocks, LockTable, Owner, Waiter
from cntr.cntrfs.devfuse.ticker import Ticker
from cntr.linux import file_locks, file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.core import Core
    from cntr.cntrfs.devfuse.replies import Replies
    from cntr.cntrfs.files import FileHandle
    from cntr.cntrfs.heartbeat import Heartbeat
    from cntr.cntrfs.node import Node

#: Errors of opening for writing after which reading is still possible: a read-only or immutable file, a running
#: program.
_READ_ONLY = (errno.EROFS, errno.EPERM, errno.EACCES, errno.ETXTBSY)
_CLOSING = 0.1  # seconds from FLUSH to RELEASE at most, if rings let other requests overtake
_FIRST, _LAST = 0.001, 0.05  # shortest and longest interval between attempts at a lock held outside, seconds


class Locks:
    """All locks of one connection. The serving thread and the ticker's may call the public methods."""

    def __init__(self, core: Core, replies: Replies, heartbeat: Heartbeat, ticker: Ticker) -> None:
        """replies: answers waiting requests."""
        self._core = core
        self._replies = replies
        self._heartbeat = heartbeat
        self._ticker = ticker
        self._mutex = threading.Lock()  # guards what follows; the innermost lock except the heartbeat's
        self._table = LockTable()
        self._pause = _FIRST
        ticker.add(self._ask_again)

    # owners

    def _owner(self, waiter: Waiter, file: FileLocks) -> Owner:
        """The request's owner, ready to lock. Call in the serving thread, since it opens files."""
        owner = file.owners.get(waiter.number)
        if owner is None:
            owner = file.owners[waiter.number] = Owner(*self._open(waiter.handle, waiter.handle.writable))
        elif waiter.kind == fcntl.F_WRLCK and not owner.writable:
            self._make_writable(owner, waiter.handle)
        owner.handles.add(waiter.fh)
        owner.pid = waiter.pid or owner.pid
        return owner

    def _open(self, handle: FileHandle, writable: bool) -> tuple[int, bool]:
        """(fd, whether it can hold write locks), opened in the client's own mode: otherwise a program could not be
        executed.
        """
        try:
            if writable:
                return self._open_file(handle, os.O_RDWR | os.O_NONBLOCK), True
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        return self._open_file(handle, os.O_RDONLY | os.O_NONBLOCK), False

    def _open_file(self, handle: FileHandle, flags: int) -> int:
        fds = self._core.fds
        return fds.open_retrying(proc_path(fds.fd(handle.node)), flags)

    def _make_writable(self, owner: Owner, handle: FileHandle) -> None:
        """The owner has read locks through a file opened for reading, and now wants a write lock through another."""
        fd, writable = self._open(handle, True)
        if not writable:
            os.close(fd)
            return
        for start, end, kind in owner.ranges:
            file_locks.set_range(fd, kind, start, 0 if end >= END else end - start + 1)
        os.close(owner.fd)
        owner.fd, owner.writable = fd, True

    # requests

    def get(self, handle: FileHandle, fh: int, number: int, start: int, end: int, kind: int, pid: int) -> bytes:
        """GETLK: the conflicting lock, or F_UNLCK."""
        asker = Waiter(0, handle, fh, number, start, end, kind, pid, False)
        with self._mutex:
            file = self._table.files.get(handle.node.nodeid)
            owners = file.owners if file is not None else {}
            own = owners.get(number)
            fd = own.fd if own is not None else self._open(handle, False)[0]
            try:
                kind, found, length, pid = file_locks.blocking_range(fd, kind, start, asker.length)
            finally:
                if own is None:
                    os.close(fd)
            if kind == fcntl.F_UNLCK:
                return wire.LK_OUT.pack(0, 0, fcntl.F_UNLCK, 0)
            found_end = found + length - 1 if length else END
            for other, owner in owners.items():
                if other != number and any(low <= found_end and high >= found for low, high, _ in owner.ranges):
                    pid = owner.pid
        return wire.LK_OUT.pack(found, found_end, kind, max(pid, 0))

    def set_again(self, nodeid: int, fh: int, number: int, start: int, end: int, kind: int, pid: int) -> bool:
        """Try ``set`` of a POSIX lock in the usual case: its owner has locked the file by this handle before, and nobody
        waits. False: nothing was done.
        """
        with self._mutex:
            file = self._table.files.get(nodeid)
            if file is None or file.waiters:
                return False
            owner = file.owners.get(number)
            if owner is None or fh not in owner.handles or not (owner.writable or kind != fcntl.F_WRLCK):
                return False
            try:
                file_locks.set_range(owner.fd, kind, start, 0 if end >= END else end - start + 1)
            except OSError:
                return False
            owner.note(start, end, kind)
            owner.pid = pid or owner.pid
        return True

    def set(
        self, unique: int, handle: FileHandle, fh: int, number: int, start: int, end: int, kind: int, pid: int,
        is_flock: bool, wait: bool,
    ) -> bool:  # fmt: skip
        """SETLK and SETLKW. False: it waits and is answered later. Raises OSError: EAGAIN; EDEADLK if it would wait for
        itself.
        """
        waiter = Waiter(unique, handle, fh, number, start, end, kind, pid, is_flock)
        with self._mutex:
            file = self._table.of(handle.node.nodeid)
            had = file.flocks.get(fh) if is_flock else None
            if is_flock:
                self._core.files.fd(handle)
            elif kind != fcntl.F_UNLCK or number in file.owners:
                self._owner(waiter, file)
            if self._try(waiter, file):
                if kind != fcntl.F_WRLCK:
                    self._wake(file)
                self._tidy(handle.node.nodeid, file)
                return True
            if had is not None:
                self._wake(file)  # converting a flock(2) lock releases it first
            if not wait:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if self._table.is_deadlock(waiter):
                raise OSError(errno.EDEADLK, os.strerror(errno.EDEADLK))
            file.waiters.append(waiter)
            self._heartbeat.park(1)
            if not is_flock:
                file.owners[number].waiting += 1
            if not any(file.blockers(waiter)):
                self._pause = _FIRST
                self._ticker.wake()
        return False

    @staticmethod
    def _try(waiter: Waiter, file: FileLocks) -> bool:
        if waiter.is_flock:
            file.flocks.pop(waiter.fh, None)
            if not file_locks.try_flock(waiter.handle.fd, waiter.kind):
                return False
            if waiter.kind != fcntl.F_UNLCK:
                file.flocks[waiter.fh] = waiter.kind
            return True
        owner = file.owners.get(waiter.number)
        if owner is None:
            return True  # unlocking what was never locked
        kind = waiter.kind
        if kind == fcntl.F_WRLCK and not owner.writable:
            # The client opened the file before it became read-only. Among the mount's clients, the lock still counts.
            if any(file.blockers(waiter)):
                return False
            kind = fcntl.F_RDLCK
        try:
            file_locks.set_range(owner.fd, kind, waiter.start, waiter.length)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
        owner.note(waiter.start, waiter.end, waiter.kind)
        return True

    # waiting

    def _wake(self, file: FileLocks) -> None:
        """A lock of the file was released: retry the waiters in order."""
        for waiter in list(file.waiters):
            if waiter in file.waiters:
                self._ask(waiter, file)
        if any(not any(file.blockers(waiter)) for waiter in file.waiters):
            self._pause = _FIRST
            self._ticker.wake()

    def _ask(self, waiter: Waiter, file: FileLocks) -> None:
        number = 0
        try:
            if any(file.blockers(waiter)) or not self._try(waiter, file):
                if not self._table.is_deadlock(waiter):
                    return
                number = errno.EDEADLK
        except OSError as error:
            number = error.errno or errno.ENOLCK
        self._end_wait(waiter, file, number)

    def _end_wait(self, waiter: Waiter, file: FileLocks, number: int) -> None:
        file.waiters.remove(waiter)
        self._heartbeat.park(-1)
        if not waiter.is_flock:
            file.owners[waiter.number].waiting -= 1
        if number:
            self._replies.fail(waiter.unique, number)
        else:
            self._replies.answer(waiter.unique, None)

    def _ask_again(self) -> float | None:
        """For the ticker: retry locks held outside the mount; return seconds to the next attempt, None for never."""
        with self._mutex:
            outside = False
            for file in list(self._table.files.values()):
                for waiter in list(file.waiters):
                    if waiter in file.waiters and not any(file.blockers(waiter)):
                        self._ask(waiter, file)
                        outside = outside or waiter in file.waiters
            if not outside:
                return None
            self._pause = min(self._pause * 1.2, _LAST)
            return self._pause

    def interrupt(self, unique: int) -> bool:
        """INTERRUPT: the client of request UNIQUE got a signal; return whether the request waited here."""
        with self._mutex:
            for nodeid, file in list(self._table.files.items()):
                for waiter in file.waiters:
                    if waiter.unique == unique:
                        self._end_wait(waiter, file, errno.EINTR)
                        self._tidy(nodeid, file)
                        return True
        return False

    # releasing

    def may_be_closing(self, node: Node, fh: int) -> bool:
        """Whether another handle's RELEASE, which ends its lock, may still be in another processor's ring."""
        file = self._table.files.get(node.nodeid)
        if file is None:
            return False
        since = monotonic() - _CLOSING
        return any(at > since and other != fh for other, at in list(file.flushed.items()))

    def flushed(self, node: Node, number: int, fh: int = 0) -> None:
        """FLUSH: the owner closed an fd of the file, and by POSIX loses all its locks on it."""
        file = self._table.files.get(node.nodeid)
        if file is None:
            return
        file.flushed[fh] = monotonic()
        if number not in file.owners:
            return
        with self._mutex:
            owner = file.owners[number]
            if owner.waiting:
                file_locks.set_range(owner.fd, fcntl.F_UNLCK, 0, 0)
                owner.ranges = []
            else:
                self._drop(file, number)
            self._wake(file)
            self._tidy(node.nodeid, file)

    def released(self, handle: FileHandle, fh: int) -> None:
        """RELEASE: an open file is gone and its fd closed, and so are the owners that used the file only through it."""
        file = self._table.files.get(handle.node.nodeid)
        if file is None:
            return
        with self._mutex:
            for waiter in [waiter for waiter in file.waiters if waiter.fh == fh]:
                self._end_wait(waiter, file, errno.EBADF)  # does not happen with current kernels
            file.flocks.pop(fh, None)
            file.flushed.pop(fh, None)
            for number, owner in list(file.owners.items()):
                owner.handles.discard(fh)
                if not owner.handles:
                    self._drop(file, number)
            self._wake(file)
            self._tidy(handle.node.nodeid, file)

    def holds_flock(self, handle: FileHandle, fh: int) -> bool:
        """Whether a flock(2) lock, held or awaited, depends on the handle's fd."""
        file = self._table.files.get(handle.node.nodeid)
        return file is not None and (fh in file.flocks or any(waiter.fh == fh for waiter in file.waiters))

    @staticmethod
    def _drop(file: FileLocks, number: int) -> None:
        os.close(file.owners.pop(number).fd)

    def _tidy(self, nodeid: int, file: FileLocks) -> None:
        if file.is_unused():
            self._table.files.pop(nodeid, None)

    def close(self) -> None:
        """Release all locks and end waiting requests."""
        with self._mutex:
            for file in self._table.files.values():
                for waiter in list(file.waiters):
                    self._end_wait(waiter, file, errno.EINTR)
                for number in list(file.owners):
                    self._drop(file, number)
            self._table.files.clear()


class RemoteLocks(Locks):
    """The locks of one filesystem that may block. Called by workers; the handles have fds. Retries in a thread of its
    own.
    """

    def __init__(self, core: Core, replies: Replies, heartbeat: Heartbeat) -> None:
        """Raises RuntimeError if no thread can be started."""
        ticker = Ticker()
        super().__init__(core, replies, heartbeat, ticker)
        never = file_syscalls.eventfd()
        threading.Thread(target=ticker.run_until_readable, args=(never,), name="remote-locks", daemon=True).start()

    def _open_file(self, handle: FileHandle, flags: int) -> int:
        return os.open(proc_path(handle.fd), flags | os.O_CLOEXEC)

    def close(self) -> None:
        """All locks end with the process; a hanging thread is not waited for."""
