"""Texts of /proc that are a process' memory, as its command line is: who has that locked keeps every reader waiting."""

from __future__ import annotations

import _thread

from cntr.linux import patience, procfs

HELD_SECONDS = (
    0.5,
    0.1,
)  # without progress in reading texts of /proc: for the first process that lets nobody in, for each other
HELD_MOST = 32  # such processes


def read(paths: list[str], limit: int) -> dict[str, str]:
    """{path: text} of files of /proc that are a process' memory, as its command line is: without those that can't be read.

    A process may have its memory locked for as long as it likes: such ones are passed over, HELD_MOST at most.
    """
    found: dict[str, str] = {}
    pending, turn, seconds = paths[::-1], [0], HELD_SECONDS[0]

    def scan(number: int, done: _thread.LockType) -> None:
        while pending and turn[0] == number:
            path = pending.pop()
            try:
                found[path] = procfs.read(path, limit=limit)
            except OSError:
                pass  # it has ended
        done.release()

    while turn[0] < HELD_MOST:
        done, left = _thread.allocate_lock(), -1
        done.acquire()
        try:
            patience.start(scan, turn[0], done)
        except RuntimeError:  # a limit on processes, the caller's own
            scan(turn[0], done)
        while not done.acquire(timeout=seconds):
            if len(pending) == left:
                break
            left = len(pending)
        else:
            break
        turn[0] += 1
        seconds = HELD_SECONDS[1]
    return dict(found)
