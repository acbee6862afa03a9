"""flock(2), POSIX and open-file-description locks: between processes, and with processes in the backing tree."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import signal
import struct
import time
from pathlib import Path

from testkit.waiting import wait_until

from ._tools import child, equal, finished, make, opened, raises

BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_FLOCK = struct.Struct("hhqqi4x")


def _lock(fd: int, command: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """fcntl(2) with a struct flock; (type, start, length, pid) as the kernel returns them."""
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    kind, _whence, start, length, pid = _FLOCK.unpack(answer)
    return kind, start, length, pid


def _take(path: Path, way: str) -> None:
    """Open the file and wait for a lock on it, by flock(2) or POSIX."""
    fd = os.open(path, os.O_RDWR)
    if way == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
    else:
        _lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK, 0, 0)


class _Holder:
    """A child that holds a lock until told to exit."""

    def __init__(self, take: object) -> None:
        assert callable(take)
        ready, tell = os.pipe()
        self._go_read, self._go = os.pipe()

        def body() -> None:
            os.close(self._go)
            take()
            os.write(tell, b"x")
            os.read(self._go_read, 1)

        self.pid = child(body)
        os.close(tell)
        equal(os.read(ready, 1), b"x", "the other process has its lock")
        os.close(ready)

    def release(self) -> None:
        os.write(self._go, b"x")  # closing is not enough: a later child may have a copy of this end
        self.forget()
        finished(self.pid)

    def forget(self) -> None:
        os.close(self._go)
        os.close(self._go_read)


def _is_free(fd: int, what: str) -> None:
    """Whether flock(2) succeeds on WHAT, at once or soon."""
    wait_until(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) is None, what, 5, passing=OSError)


def check_flock(here: Path) -> None:
    make(here / "f")

    def take(kind: int) -> object:
        return lambda: fcntl.flock(os.open(here / "f", os.O_RDWR), kind)

    holder = _Holder(take(fcntl.LOCK_EX))
    with opened(here / "f", os.O_RDWR) as fd:
        raises(BUSY, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raises(BUSY, fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder.release()
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with opened(here / "f") as same_process:
            raises(BUSY, fcntl.flock, same_process, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder = _Holder(take(fcntl.LOCK_SH))
        raises(BUSY, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.release()
        fcntl.flock(fd, fcntl.LOCK_UN)


def check_flock_ends_with_the_last_descriptor(here: Path) -> None:
    make(here / "f")
    fd = os.open(here / "f", os.O_RDWR)
    again = os.dup(fd)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)
    with opened(here / "f") as other:
        raises(BUSY, fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(again)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def check_flock_on_a_directory(here: Path) -> None:
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as one, opened(here, os.O_RDONLY | os.O_DIRECTORY) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        raises(BUSY, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_posix_lock_ranges(here: Path) -> None:
    make(here / "f", b"x" * 100)

    def take() -> None:
        fd = os.open(here / "f", os.O_RDWR)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 10, 20)
        _lock(fd, fcntl.F_SETLK, fcntl.F_RDLCK, 50, 0)

    holder = _Holder(take)
    with opened(here / "f", os.O_RDWR) as fd:
        raises(BUSY, _lock, fd, fcntl.F_SETLK, fcntl.F_RDLCK, 29, 1)
        raises(BUSY, _lock, fd, fcntl.F_SETLK, fcntl.F_WRLCK, 1000, 1)
        _lock(fd, fcntl.F_SETLK, fcntl.F_RDLCK, 1000, 1)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 30, 20)
        equal(_lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 5, 10), (fcntl.F_WRLCK, 10, 20, holder.pid), "F_GETLK")
        equal(_lock(fd, fcntl.F_GETLK, fcntl.F_RDLCK, 60, 10)[0], fcntl.F_UNLCK, "readers share")
        holder.release()
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)


def check_posix_lock_ends_with_any_close(here: Path) -> None:
    """POSIX's trap: closing any descriptor of the file releases all of the process's locks."""
    make(here / "f")
    with opened(here / "f", os.O_RDWR) as fd:
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)
        os.close(os.open(here / "f", os.O_RDONLY))

        def take() -> None:
            other = os.open(here / "f", os.O_RDWR)
            _lock(other, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)

        _Holder(take).release()


def check_posix_lock_needs_the_right_mode(here: Path) -> None:
    make(here / "f")
    with opened(here / "f", os.O_RDONLY) as fd:
        raises(errno.EBADF, _lock, fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)
    with opened(here / "f", os.O_WRONLY) as fd:
        raises(errno.EBADF, _lock, fd, fcntl.F_SETLK, fcntl.F_RDLCK, 0, 0)


def check_ofd_locks(here: Path) -> None:
    make(here / "f")
    with opened(here / "f", os.O_RDWR) as one, opened(here / "f", os.O_RDWR) as two:
        _lock(one, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 0, 10)
        raises(BUSY, _lock, two, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 5, 10)
        _lock(two, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 10, 10)
        os.close(os.open(here / "f", os.O_RDONLY))
        raises(BUSY, _lock, two, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 5, 1)
        kind, start, length, pid = _lock(two, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, 0, 5)
        equal((kind, start, length, pid), (fcntl.F_WRLCK, 0, 10, -1), "F_OFD_GETLK")


def check_waiting_lock_is_granted(here: Path) -> None:
    for way in ("flock", "posix"):
        make(here / way)

        take = functools.partial(_take, here / way, way)
        holder = _Holder(take)
        waiter = child(take)
        time.sleep(0.1)
        equal(os.waitpid(waiter, os.WNOHANG), (0, 0), f"{way}: the second process waits")
        # A server that waits inside the call would answer nobody now.
        make(here / f"{way}-meanwhile", b"served")
        equal((here / f"{way}-meanwhile").read_bytes(), b"served")
        holder.release()
        finished(waiter)


def check_waiting_lock_is_interrupted(here: Path) -> None:
    for way in ("flock", "posix"):
        make(here / way)

        take = functools.partial(_take, here / way, way)
        holder = _Holder(take)

        def wait(take: object = take) -> None:
            class Interrupted(Exception):
                pass

            def handler(number: int, frame: object) -> None:
                raise Interrupted

            signal.signal(signal.SIGUSR1, handler)
            try:
                assert callable(take)
                take()
            except Interrupted:
                return
            raise AssertionError("got a lock that another process holds")

        waiter = child(wait)
        time.sleep(0.15)
        os.kill(waiter, signal.SIGUSR1)
        finished(waiter)
        holder.release()


def check_waiting_process_can_be_killed(here: Path) -> None:
    make(here / "f")
    take = lambda: fcntl.flock(os.open(here / "f", os.O_RDWR), fcntl.LOCK_EX)  # noqa: E731
    holder = _Holder(take)
    waiter = child(take)
    time.sleep(0.1)
    os.kill(waiter, signal.SIGKILL)
    finished(waiter, -signal.SIGKILL)
    holder.release()
    with opened(here / "f", os.O_RDWR) as fd:
        _is_free(fd, "the dead waiter's lock is not granted")


def check_dead_process_leaves_no_lock(here: Path) -> None:
    make(here / "f")

    def take() -> None:
        fd = os.open(here / "f", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)

    holder = _Holder(take)
    os.kill(holder.pid, signal.SIGKILL)
    finished(holder.pid, -signal.SIGKILL)
    holder.forget()
    with opened(here / "f", os.O_RDWR) as fd:
        _is_free(fd, "flock of a dead process")
        wait_until(
            lambda: _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0), "POSIX lock of a dead process", 5, passing=OSError
        )


def check_read_lock_of_a_reader(here: Path) -> None:
    """Of a file opened read-only, whose close the kernel may not report to the server: it blocks writers, and ends."""
    make(here / "f")

    def take() -> None:
        fd = os.open(here / "f", os.O_RDONLY)
        _lock(fd, fcntl.F_SETLK, fcntl.F_RDLCK, 0, 0)

    with opened(here / "f", os.O_RDWR) as fd:
        for end in (_Holder.release, lambda holder: (os.kill(holder.pid, signal.SIGKILL), holder.forget())):
            holder = _Holder(take)
            raises(BUSY, _lock, fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)
            _lock(fd, fcntl.F_SETLK, fcntl.F_RDLCK, 0, 0)
            _lock(fd, fcntl.F_SETLK, fcntl.F_UNLCK, 0, 0)
            end(holder)
            wait_until(
                lambda: _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0),
                "the lock of a process that has ended",
                5,
                passing=OSError,
            )
            _lock(fd, fcntl.F_SETLK, fcntl.F_UNLCK, 0, 0)
    finished(holder.pid, -signal.SIGKILL)


def check_read_lock_ends_with_its_owner(here: Path) -> None:
    """Although a child has the same open file, whatever its mode: fcntl(2) locks are not inherited."""
    make(here / "f")
    reader = os.open(here / "f", os.O_RDONLY)
    told, tell = os.pipe()
    if not (owner := os.fork()):
        try:
            _lock(reader, fcntl.F_SETLK, fcntl.F_RDLCK, 0, 0)
            if not os.fork():
                os.close(tell)
                os.read(told, 1)  # until the check is over
        finally:
            os._exit(0)
    os.close(reader)
    os.waitpid(owner, 0)
    try:
        with opened(here / "f", os.O_RDWR) as fd:
            wait_until(
                lambda: _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0), "the owner's lock to end", 5, passing=OSError
            )
    finally:
        os.close(tell)
        os.close(told)


def check_posix_deadlock_is_found(here: Path) -> None:
    """EDEADLK, or at least no hang: an alarm ends the wait below."""
    make(here / "f", b"x" * 10)

    def take() -> None:
        fd = os.open(here / "f", os.O_RDWR)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 1)

    holder = _Holder(take)
    with opened(here / "f", os.O_RDWR) as fd:
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 1, 1)
        raises(BUSY, _lock, fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 2)
        holder.release()
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 2)


def check_contended_locks_exclude(here: Path) -> None:
    """Five processes, and two opens in each: nobody is told of a deadlock, and no step of the counter is lost."""
    make(here / "counter", b"0")

    def count(way: str) -> None:
        files = [os.open(here / "counter", os.O_RDWR) for _ in range(2)]
        for turn in range(16):
            fd = files[turn % 2]
            if way == "flock":
                fcntl.flock(fd, fcntl.LOCK_EX)
            else:
                _lock(fd, fcntl.F_SETLKW if way == "posix" else fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, 0, 0)
            os.pwrite(fd, b"%d" % (int(os.pread(fd, 20, 0)) + 1), 0)
            if way == "flock":
                fcntl.flock(fd, fcntl.LOCK_UN)
            else:
                _lock(fd, fcntl.F_SETLK if way == "posix" else fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0, 0)

    for way in ("flock", "posix", "ofd"):
        children = [child(functools.partial(count, way)) for _ in range(5)]
        for pid in children:
            finished(pid)
    equal((here / "counter").read_bytes(), b"240")


def check_flock_excludes_the_backing_tree(here: Path, behind: Path) -> None:
    """If locks were local to the mount, two databases could write the same file."""
    make(here / "f")
    with opened(here / "f", os.O_RDWR) as mine, opened(behind / "f", os.O_RDWR) as below:
        fcntl.flock(mine, fcntl.LOCK_EX)
        raises(BUSY, fcntl.flock, below, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(mine, fcntl.LOCK_UN)
        fcntl.flock(below, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raises(BUSY, fcntl.flock, mine, fcntl.LOCK_SH | fcntl.LOCK_NB)


def check_posix_lock_excludes_the_backing_tree(here: Path, behind: Path) -> None:
    make(here / "f")

    def take() -> None:
        fd = os.open(here / "f", os.O_RDWR)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 5, 5)

    holder = _Holder(take)
    with opened(behind / "f", os.O_RDWR) as below:
        try:
            raises(BUSY, _lock, below, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)
            _lock(below, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 5)
        finally:
            holder.release()
        wait_until(
            lambda: _lock(below, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0), "released at the backing file", 5, passing=OSError
        )
