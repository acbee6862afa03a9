"""Worker threads for system calls that may take long: copies, fsyncs, large changes, opens.

A job uses nothing of the core except fds of its own, or of a handle: the kernel sends no RELEASE while a request on the
handle is pending. ``submit`` answers from the worker; ``defer`` returns the result to the serving thread, which alone
touches the core. A lane (a disk) may use only some of the threads, so a hanging disk leaves threads for the others.
"""

from __future__ import annotations

import _signal as signal
import os
import threading
from _queue import SimpleQueue  # the C half of queue; the rest is not needed
from collections import deque

from cntr.cntrfs.devfuse.replies import NO_ANSWER
from cntr.cntrfs.log import errno_of
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cntr.cntrfs.devfuse.replies import Replies
    from cntr.cntrfs.devfuse.ticker import Ticker
    from cntr.cntrfs.heartbeat import Heartbeat

_THREADS = 32
_LANE = 12  # threads per lane
_SIGNAL_AGAIN = 0.02  # seconds between signals: the thread may not have been in its system call at the first


class Job:
    """One unit of work. interrupted: the client got a signal; is_interruptible: the thread then gets one too (SIGUSR2)."""

    __slots__ = (
        "error", "finish", "header", "interrupted", "is_interruptible", "lane", "nodeids", "result", "then", "thread",
        "work",
    )  # fmt: skip

    def __init__(
        self,
        header: tuple[int, ...],
        work: Callable[[Job], object],
        lane: int,
        finish: Callable[[Job], None],
        is_interruptible: bool,
    ) -> None:
        """header: of the request, struct fuse_in_header; finish: called by the worker with the result or the error.

        nodeids: of the files whose handles' fds it uses.
        """
        self.nodeids: tuple[int, ...] = header[3:4]
        self.header, self.work, self.lane, self.finish = header, work, lane, finish
        self.is_interruptible = is_interruptible
        self.interrupted = False
        self.thread = 0  # the thread that runs it
        self.result: object = None
        self.error: Exception | None = None
        self.then: Callable[[Any], bytes | None] | None = None  # for a deferred job: makes the answer of its result


class Workers:
    """The threads of one connection, started when first needed. If none can be started, the serving thread does the
    work.
    """

    def __init__(self, replies: Replies, heartbeat: Heartbeat, ticker: Ticker) -> None:
        """replies: answers the jobs."""
        self._replies = replies
        self._heartbeat = heartbeat
        self._ticker = ticker
        self._queue: SimpleQueue[Job] = SimpleQueue()
        # guards the rest; only queue operations and pthread_kill are called while it is held
        self._mutex = threading.Lock()
        self._threads = 0
        self._busy = 0  # jobs given to a thread, started or not
        self._lanes: dict[int, tuple[list[Job], deque[Job]]] = {}  # running, waiting
        self._jobs: dict[int, Job] = {}  # by request
        #: Deferred jobs not yet finished by the serving thread, which alone uses this.
        self.deferred = 0
        self.done: deque[Job] = deque()
        self.done_event = file_syscalls.eventfd()
        self._is_closed = False
        ticker.add(self._signal)

    # for the serving thread

    def submit(
        self,
        header: tuple[int, ...],
        work: Callable[[Job], bytes | None],
        lane: int,
        *,
        is_interruptible: bool = False,
        other: int = 0,
    ) -> None:
        """Run WORK and answer the request with its result or error. other: node id of a second file."""
        job = Job(header, work, lane, self._reply, is_interruptible)
        job.nodeids += (other,)
        self._begin(job)

    def defer(
        self,
        header: tuple[int, ...],
        work: Callable[[Job], object],
        then: Callable[[Any], bytes | None],
        lane: int,
        *,
        is_interruptible: bool = False,
    ) -> None:
        """Run WORK; then the job is in ``done``, ``done_event`` is readable, and THEN is called with the result."""
        job = Job(header, work, lane, self._hand_back, is_interruptible)
        job.then = then
        self.deferred += 1
        self._begin(job)

    def run(self, work: Callable[[], object], lane: int) -> None:
        """Run WORK without anyone waiting for the result."""
        self._begin(Job((0,) * 8, lambda job: work(), lane, lambda job: None, False))

    def are_using(self, nodeid: int) -> bool:
        """Whether a job may be using an fd of a handle on the file."""
        return bool(self._jobs) and any(nodeid in job.nodeids for job in list(self._jobs.values()))

    def interrupt(self, unique: int) -> bool:
        """INTERRUPT: the client of request UNIQUE got a signal; return whether the request is being worked on."""
        job = self._jobs.get(unique)
        if job is not None:
            job.interrupted = True
            if job.is_interruptible:
                self._ticker.wake()
        return job is not None

    def close(self) -> None:
        """The session has ended: nobody needs the results of running jobs."""
        with self._mutex:
            self._is_closed = True
            os.close(self.done_event)

    # for any thread

    def _begin(self, job: Job) -> None:
        self._heartbeat.park(1)
        with self._mutex:
            self._jobs[job.header[2]] = job
            running, waiting = self._lanes.setdefault(job.lane, ([], deque()))
            if len(running) >= _LANE:
                waiting.append(job)
                return
            running.append(job)
            inline = not self._hand_over(job)
        if inline:
            self._work(job)

    def _hand_over(self, job: Job) -> bool:
        """Give the job to a thread; False if there is none."""
        self._busy += 1
        if self._busy > self._threads and self._threads < _THREADS:
            try:
                threading.Thread(target=self._run, name=f"worker-{self._threads}", daemon=True).start()
                self._threads += 1
            except RuntimeError:
                if not self._threads:
                    return False
        self._queue.put(job)
        return True

    def _run(self) -> None:
        while True:
            self._work(self._queue.get())

    def _work(self, first: Job) -> None:
        job: Job | None = first
        while job is not None:
            job.thread = threading.get_ident()
            try:
                job.result = job.work(job)
            except Exception as error:  # noqa: BLE001  every mistake becomes an answer
                job.error = error
            with self._mutex:
                job.thread = 0
                self._jobs.pop(job.header[2], None)
            self._heartbeat.park(-1)
            self._heartbeat.moved()
            job.finish(job)
            job = self._next(job)

    def _next(self, ended: Job) -> Job | None:
        """The next job that waits for the same lane."""
        with self._mutex:
            running, waiting = self._lanes[ended.lane]
            running.remove(ended)
            if waiting:
                job = waiting.popleft()
                running.append(job)
                return job
            if not running:
                del self._lanes[ended.lane]
            self._busy -= 1
            return None

    def _reply(self, job: Job) -> None:
        if job.error is not None:
            self._replies.fail(job.header[2], errno_of(job.error))
        elif job.result is not NO_ANSWER:
            assert job.result is None or isinstance(job.result, bytes)
            self._replies.answer(job.header[2], job.result)

    def _hand_back(self, job: Job) -> None:
        self.done.append(job)
        self.wake()

    def wake(self) -> None:
        """Wake whoever waits for ``done_event``; from any thread."""
        with self._mutex:
            if not self._is_closed:
                os.write(self.done_event, file_syscalls.EVENT)

    def _signal(self) -> float | None:
        """For the ticker: interrupt the system calls of interrupted jobs."""
        again = None
        with self._mutex:
            for job in self._jobs.values():
                if job.interrupted and job.is_interruptible:
                    again = _SIGNAL_AGAIN
                    if job.thread:
                        signal.pthread_kill(job.thread, signal.SIGUSR2)
        return again


def sync(fd: int, data_only: bool) -> bytes | None:
    """fsync(2) or fdatasync(2)."""
    (os.fdatasync if data_only else os.fsync)(fd)
    return None
