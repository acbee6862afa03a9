"""Access to what may never answer: a container's files on FUSE, on a network file system, or on an
overlay of either; the memory of a process.

A process that waits for such a file reacts to SIGKILL only. So a thread waits, and is abandoned
after a timeout; it ends with the process. If a FUSE server has read the request, even SIGKILL has
no effect: that takes a process of its own (apart.py).
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

SECONDS = 3.0
# Types in mountinfo whose server may be anybody's. The types of an overlay's lower layers are not
# shown there.
SLOW = tuple(
    f" - {kind}" for kind in "fuse overlay nfs 9p cifs smb3 ceph afs autofs virtiofs ecryptfs orangefs coda".split()
)


def may_never_answer(mountinfo: str) -> bool:
    """Whether access to a process's files may block for ever, judged by the text of its mountinfo (proc(5))."""
    return any(kind in mountinfo for kind in SLOW)


def start(work: Callable[..., object], *arguments: object) -> None:
    """Start a thread that receives no signals: it may be left waiting, and the main thread may read
    signals from a file (signalfd(2)). Raises RuntimeError if no thread can be made.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        _thread.start_new_thread(work, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bounded(work: Callable[[], T], seconds: float | None = None) -> T:
    """Return what WORK returns, or raise what it raises. After SECONDS raise TimeoutError and let WORK run on in
    its thread.
    """
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

    try:
        start(run)
    except RuntimeError:  # a limit on the number of processes, the caller's own
        run()
    if not done.acquire(timeout=SECONDS if seconds is None else seconds):
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]
