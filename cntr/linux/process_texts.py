"""Files of /proc that are a process's memory, such as its command line. A process that has its
memory locked blocks every reader.
"""

from __future__ import annotations

import _thread

from cntr.linux import patience, procfs

HELD_SECONDS = (
    0.5,
    0.1,
)  # seconds without progress in reading files of /proc: for the first process that blocks, for each other one
HELD_MOST = 32  # such processes


def read(paths: list[str], limit: int) -> dict[str, str]:
    """{path: text} of files of /proc that are a process's memory, such as its command line; those
    that cannot be read are left out.

    A process may keep its memory locked as long as it likes. Such processes are skipped, HELD_MOST
    of them at most.
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
        except RuntimeError:  # a limit on the number of processes, the caller's own
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
