"""Which client of the mount holds or awaits which lock. The kernel does not tell this for locks on the backing file.

The kernel decides who gets a lock. The table tells whose a lock is (F_GETLK), who blocks whom, whether two owners would
wait for each other (EDEADLK), and whose request to retry when a lock is released.
"""

from __future__ import annotations

import fcntl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cntr.cntrfs.files import FileHandle

END = (1 << 63) - 1  # OFFSET_MAX, the kernel's "to the end of the file"


class Owner:
    """A lock owner of the kernel (a process, or an open file for OFD locks) on one file, and the fd that holds its
    locks.
    """

    __slots__ = ("fd", "handles", "pid", "ranges", "waiting", "writable")

    def __init__(self, fd: int, writable: bool) -> None:
        """handles: the open files it locked through; ranges: (start, end, kind) held; waiting: number of waiting
        requests.
        """
        self.fd = fd
        self.writable = writable
        self.pid = 0
        self.handles: set[int] = set()
        self.ranges: list[tuple[int, int, int]] = []
        self.waiting = 0

    def note(self, start: int, end: int, kind: int) -> None:
        """Record that the range is now locked as KIND, or unlocked."""
        if not self.ranges:
            if kind != fcntl.F_UNLCK:
                self.ranges = [(start, end, kind)]
            return
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

    def is_in_the_way(self, start: int, end: int, kind: int) -> bool:
        """Whether it holds a lock that conflicts with KIND on the range."""
        write = kind == fcntl.F_WRLCK
        return any(low <= end and high >= start and (write or held == fcntl.F_WRLCK) for low, high, held in self.ranges)


class Waiter:
    """A waiting request; it occupies no thread. number: the kernel's number of the owner; flock(2) locks belong to the
    handle.
    """

    __slots__ = ("end", "fh", "handle", "is_flock", "kind", "number", "pid", "start", "unique")

    def __init__(
        self, unique: int, handle: FileHandle, fh: int, number: int, start: int, end: int, kind: int, pid: int,
        is_flock: bool,
    ) -> None:  # fmt: skip
        """The fields of a lock request."""
        self.unique, self.handle, self.fh, self.number = unique, handle, fh, number
        self.start, self.end, self.kind, self.pid, self.is_flock = start, end, kind, pid, is_flock

    @property
    def length(self) -> int:
        """Length in bytes as in fcntl(2): 0 means to the end."""
        return 0 if self.end >= END else self.end - self.start + 1


class FileLocks:
    """The locks on one file: owners by number, flock(2) locks by handle, and the waiters in order."""

    __slots__ = ("flocks", "flushed", "owners", "waiters")

    def __init__(self) -> None:
        self.owners: dict[int, Owner] = {}
        self.flocks: dict[int, int] = {}
        self.flushed: dict[
            int, float
        ] = {}  # when a process closed an fd of a handle (monotonic); it may have been the last
        self.waiters: list[Waiter] = []

    def blockers(self, waiter: Waiter) -> Iterator[int]:
        """The owners (for flock(2): the handles) among the mount's clients that block it."""
        if waiter.is_flock:
            write = waiter.kind == fcntl.F_WRLCK
            for fh, held in self.flocks.items():
                if fh != waiter.fh and (write or held == fcntl.F_WRLCK):
                    yield fh
            return
        for number, owner in self.owners.items():
            if number != waiter.number and owner.is_in_the_way(waiter.start, waiter.end, waiter.kind):
                yield number

    def is_unused(self) -> bool:
        """Whether nothing refers to it any more."""
        return not self.owners and not self.flocks and not self.waiters


class LockTable:
    """All files with locks, by node id."""

    def __init__(self) -> None:
        self.files: dict[int, FileLocks] = {}

    def of(self, nodeid: int) -> FileLocks:
        """The file's locks."""
        found = self.files.get(nodeid)
        if found is None:
            found = self.files[nodeid] = FileLocks()
        return found

    def waiters(self) -> list[Waiter]:
        """All waiters."""
        return [waiter for file in self.files.values() for waiter in file.waiters]

    def is_deadlock(self, waiter: Waiter) -> bool:
        """Whether it would wait for an owner that waits, directly or not, for its own owner; see
        posix_locks_deadlock().

        Like the kernel's search, this ignores that threads of one owner may unblock each other.
        """
        if waiter.is_flock:
            return False
        waiting: dict[int, list[Waiter]] = {}
        for other in self.waiters():
            if not other.is_flock:
                waiting.setdefault(other.number, []).append(other)
        look_at, seen = list(self.of(waiter.handle.node.nodeid).blockers(waiter)), set()
        while look_at:
            number = look_at.pop()
            if number == waiter.number:
                return True
            if number not in seen:
                seen.add(number)
                for other in waiting.get(number, ()):
                    look_at += self.of(other.handle.node.nodeid).blockers(other)
        return False
