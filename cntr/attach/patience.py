"""Looking at a container's files that may never answer: on FUSE, on a network file system, on an overlay of either.

A process that waits for one hears nothing but SIGKILL, so it is a thread that waits, and is left waiting; it ends with the process.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

SECONDS = 3.0
# Of mountinfo: whose server may be anybody; an overlay's lower layers are not to be seen there.
SLOW = tuple(
    f" - {kind}" for kind in "fuse overlay nfs 9p cifs smb3 ceph afs autofs virtiofs ecryptfs orangefs coda".split()
)


def may_never_answer(mountinfo: str) -> bool:
    """Whether a process's mounts are such that its files may be waited for; mountinfo: the text of that file (proc(5))."""
    return any(kind in mountinfo for kind in SLOW)


def bounded(work: Callable[[], T], seconds: float | None = None) -> T:
    """What WORK returns, or raises, within SECONDS; then raises TimeoutError, and WORK goes on alone."""
    done = _thread.allocate_lock()
    done.acquire()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            errors.append(error)
        finally:
            done.release()

    _thread.start_new_thread(run, ())
    if not done.acquire(timeout=SECONDS if seconds is None else seconds):
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]
