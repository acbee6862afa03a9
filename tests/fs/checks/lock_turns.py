"""Locks of several processes: who waits, who continues, who closes another descriptor; one
exclusive owner at a time.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

from testkit.waiting import wait_until

from ._tools import child, equal, finished, in_threads, make, opened, raises
from .locks import BUSY, _Holder, _is_free, _lock, _take


def check_flock_ends_while_others_have_the_file_open(here: Path) -> None:
    """`( flock 9; … ) 9>L & ( flock 9; … ) 9>L`: the second has the file open when the first closes it."""
    make(here / "f")
    first = os.open(here / "f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    fcntl.flock(first, fcntl.LOCK_EX)
    with opened(here / "f", os.O_WRONLY) as second:
        raises(BUSY, fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(first)
        _is_free(second, "the lock of the closed file")
    created = os.open(here / "created", os.O_WRONLY | os.O_CREAT)
    fcntl.flock(created, fcntl.LOCK_EX)
    with opened(here / "created", os.O_RDONLY) as second:
        os.close(created)
        wait_until(
            lambda: fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB) is None,
            "the lock of the creator",
            5,
            passing=OSError,
        )


def check_flock_is_converted(here: Path) -> None:
    """A conversion releases the old lock first: if it fails, no lock is left."""
    make(here / "f")
    with opened(here / "f") as one, opened(here / "f") as two:
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH)
        raises(BUSY, fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raises(BUSY, fcntl.flock, one, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(two, fcntl.LOCK_SH)
        fcntl.flock(one, fcntl.LOCK_SH | fcntl.LOCK_NB)


def check_waiting_posix_lock_outlives_a_close(here: Path) -> None:
    """One thread waits, another closes a descriptor of the file: held locks are released, the
    awaited one is not cancelled.
    """
    make(here / "f")
    take = lambda: _lock(os.open(here / "f", os.O_RDWR), fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)  # noqa: E731
    holder = _Holder(take)
    told, tell = os.pipe()

    def wait() -> None:
        fd = os.open(here / "f", os.O_RDWR)
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 20, 10)
        waiter = threading.Thread(target=_lock, args=(fd, fcntl.F_SETLKW, fcntl.F_WRLCK, 0, 10))
        waiter.start()
        time.sleep(0.1)
        os.close(os.open(here / "f", os.O_RDWR))
        os.write(tell, b"c")
        waiter.join()
        os.write(tell, b"g")
        time.sleep(60)

    waiter = child(wait)
    try:
        equal(os.read(told, 1), b"c")
        with opened(here / "f", os.O_RDWR) as fd:
            wait_until(
                lambda: _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 20, 10),
                "the held lock to be released",
                5,
                passing=OSError,
            )
            holder.release()
            equal(os.read(told, 1), b"g", "the waiter has its lock")
            for _ in range(20):
                raises(BUSY, _lock, fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)
            equal(_lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0), (fcntl.F_WRLCK, 0, 10, waiter), "whose it is")
    finally:
        os.kill(waiter, signal.SIGKILL)
        finished(waiter, -signal.SIGKILL)
        os.close(told)
        os.close(tell)


def check_one_exclusive_owner_at_a_time(here: Path) -> None:
    """Many processes and threads take turns at a counter, and close other descriptors all the time."""
    make(here / "counter", b"0")

    def work() -> None:
        def turns(number: int) -> None:
            for _ in range(15):
                fd = os.open(here / "counter", os.O_RDWR)
                _lock(fd, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, 0, 0)  # threads, too
                value = int(os.pread(fd, 20, 0))
                os.close(os.open(here / "counter", os.O_RDONLY))
                os.pwrite(fd, b"%d" % (value + 1), 0)
                os.close(fd)

        in_threads(3, turns)

    workers = [child(work) for _ in range(3)]
    for worker in workers:
        finished(worker)
    equal((here / "counter").read_bytes(), b"135", "increments")


def check_locks_of_a_forked_process(here: Path) -> None:
    """POSIX locks are not inherited; flock(2) and OFD locks are shared: a child's close releases
    none of its parent's locks.
    """
    make(here / "f", b"x" * 100)
    with opened(here / "f", os.O_RDWR) as fd, opened(here / "f", os.O_RDWR) as other:
        _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)
        _lock(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 50, 10)
        fcntl.flock(fd, fcntl.LOCK_EX)

        def inherits() -> None:
            raises(BUSY, _lock, fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 10)
            _lock(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 55, 10)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)

        finished(child(inherits))

        def stranger() -> None:
            mine = os.open(here / "f", os.O_RDWR)
            raises(BUSY, _lock, mine, fcntl.F_SETLK, fcntl.F_WRLCK, 9, 1)
            raises(BUSY, _lock, mine, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 64, 1)
            raises(BUSY, fcntl.flock, mine, fcntl.LOCK_SH | fcntl.LOCK_NB)

        finished(child(stranger))
        raises(BUSY, fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def check_lock_is_free_when_close_has_returned(here: Path) -> None:
    """For a process on another processor, too: `flock -n 9 …` twice in a row."""
    make(here / "f", b"x" * 100)
    processors = os.sched_getaffinity(0)
    taken, probe = (struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0) for _ in range(2))
    try:
        for turn in range(60):
            for way in ("flock", "ofd", "ask"):
                first, second = (os.open(here / "f", os.O_RDWR) for _ in range(2))
                os.sched_setaffinity(0, {min(processors)})
                if way == "flock":
                    fcntl.flock(first, fcntl.LOCK_EX)
                else:
                    fcntl.fcntl(first, fcntl.F_OFD_SETLK, taken)
                os.close(first)
                os.sched_setaffinity(0, {max(processors)})
                if way == "flock":
                    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                elif way == "ofd":
                    fcntl.fcntl(second, fcntl.F_OFD_SETLK, taken)
                else:
                    found = fcntl.fcntl(second, fcntl.F_OFD_GETLK, probe)
                    equal(struct.unpack_from("h", found)[0], fcntl.F_UNLCK, f"turn {turn}")
                os.close(second)
    finally:
        os.sched_setaffinity(0, processors)


def check_killed_waiter_takes_nothing(here: Path) -> None:
    for way in ("posix", "ofd"):
        make(here / way)
        command = fcntl.F_SETLKW if way == "posix" else fcntl.F_OFD_SETLKW

        def take(way: str = way, command: int = command) -> None:
            _lock(os.open(here / way, os.O_RDWR), command, fcntl.F_WRLCK, 0, 0)

        holder = _Holder(take)
        waiters = [child(take) for _ in range(4)]
        time.sleep(0.15)
        for waiter in waiters:
            os.kill(waiter, signal.SIGKILL)
            finished(waiter, -signal.SIGKILL)
        holder.release()
        with opened(here / way, os.O_RDWR) as fd:
            wait_until(
                lambda fd=fd: _lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0), "nobody to hold it", 5, passing=OSError
            )


def check_posix_deadlock_of_two(here: Path) -> None:
    """Each waits for the other: one gets EDEADLK, and the other its lock once the first ends."""
    for name in ("a", "b"):
        make(here / name)
    told, tell = os.pipe()

    def take(first: str, second: str) -> None:
        _lock(os.open(here / first, os.O_RDWR), fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0)
        os.write(tell, b"x")
        time.sleep(0.2)
        try:
            _lock(os.open(here / second, os.O_RDWR), fcntl.F_SETLKW, fcntl.F_WRLCK, 0, 0)
        except OSError as error:
            equal(error.errno, errno.EDEADLK)
            os.write(tell, b"d")
        else:
            os.write(tell, b"g")

    pair = [child(lambda: take("a", "b")), child(lambda: take("b", "a"))]
    for one in pair:
        finished(one)
    seen = os.read(told, 10)
    os.close(told)
    os.close(tell)
    equal(sorted(seen), sorted(b"xxdg"), "one deadlock found, one lock granted")


def check_ten_who_wait(here: Path) -> None:
    """They are served one after the other."""
    make(here / "f")
    take = lambda: fcntl.flock(os.open(here / "f", os.O_RDWR), fcntl.LOCK_EX)  # noqa: E731
    holder = _Holder(take)
    waiters = [child(take) for _ in range(10)]
    time.sleep(0.1)
    holder.release()
    for waiter in waiters:
        finished(waiter)


def check_waiting_for_a_lock_of_the_backing_tree(here: Path, behind: Path) -> None:
    for way in ("flock", "posix"):
        make(here / way)

        with opened(behind / way, os.O_RDWR) as below:
            if way == "flock":
                fcntl.flock(below, fcntl.LOCK_EX)
            else:
                _lock(below, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 0, 0)
            waiter = child(functools.partial(_take, here / way, way))
            time.sleep(0.1)
            equal(os.waitpid(waiter, os.WNOHANG), (0, 0), f"{way}: it waits")
            if way == "flock":  # the child has a copy of the descriptor
                fcntl.flock(below, fcntl.LOCK_UN)
            else:
                _lock(below, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0, 0)
            finished(waiter)


def check_written_file_can_be_run_behind(here: Path, behind: Path) -> None:
    """It is no longer open for writing after the close, although another process has it open (ETXTBSY)."""
    program = behind / "program"
    fd = os.open(here / "program", os.O_WRONLY | os.O_CREAT, 0o755)
    with opened(here / "program"):
        os.write(fd, b"#!/bin/sh\nexit 3\n")
        os.close(fd)
        wait_until(
            lambda: subprocess.run([program], check=False).returncode == 3,
            "the creator to close it",
            2,
            passing=OSError,
        )
    with opened(here / "program"):
        with opened(here / "program", os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"\n")
        wait_until(
            lambda: subprocess.run([program], check=False).returncode == 3, "the writer to close it", 2, passing=OSError
        )
