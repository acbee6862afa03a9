"""FUSE over io_uring (``-o io_uring``): each processor has a ring by which requests arrive and are answered.

A request wakes a thread on the processor where it was made; with /dev/fuse it woke a thread on another. Answering and waiting for the
next request are one system call. The kernel has a queue for each *possible* processor, and sends requests only when each queue has an
entry: a buffer that holds one request from its arrival to its answer.

So a waiting request (for a lock, for a worker) must not occupy an entry: a replacement takes the place of its entry. Otherwise all
requests from that processor would wait.

One thread at a time handles requests (``serving``): the core has one set of buffers and one umask. FORGET, INTERRUPT and notifications
stay on /dev/fuse.
"""

from __future__ import annotations

import _signal as signal
import errno
import os
import struct
import threading
from _queue import SimpleQueue
from collections import deque
from contextlib import suppress
from mmap import MADV_DONTNEED, PAGESIZE

from cntr.cntrfs import log
from cntr.cntrfs.devfuse import wire
from cntr.linux import file_syscalls, io_uring, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.heartbeat import Heartbeat

    Serve = Callable[[tuple[int, ...], memoryview], None]
    Posted = tuple["Entry", int, "bytes | None"]

DEPTH = 4  # entries of a queue that wait for requests
MOST = 4096  # most entries of a queue
MOST_QUEUES = 64
_MEMORY = 64 << 20  # total size of the buffers, without the replacements …
_SMALLEST, _LARGEST = 1 << 17, 1 << 20  # … within these bounds for each buffer
_SMALL = 1 << 15  # bytes that a replaced entry's buffer keeps
_LAST_WORDS = 1.0  # seconds for a thread to end; it may be in a system call that waits for a disk

# struct fuse_uring_req_header: struct fuse_in_header or fuse_out_header at 0, the request's first argument at 128, and struct
# fuse_uring_ent_in_out at 256: flags, commit_id, payload_sz. The two iovecs of a registration follow.
_ARGUMENT, _ARGUMENT_SIZE, _IN_OUT, _IOVECS, _HEADER_SIZE = 128, 128, 256, 288, 288
#: The payload. A copy of the first argument is put right before it, so that a request is in one piece, as on /dev/fuse.
_PAYLOAD = 512
_IN_OUT_STRUCT = struct.Struct("=QQI")
_IOVEC_PAIR, _PAYLOAD_SIZE = struct.Struct("@PNPN"), struct.Struct("=I")
_ERROR = struct.Struct("=Ii")  # struct fuse_out_header: len error; its unique is in the same place as the request's
_LISTEN = 0  # the number of the read of the eventfd; other numbers are entries
_GONE = (-errno.ENOTCONN, -errno.ECONNABORTED, -errno.ENODEV, -errno.ECANCELED)


def possible_processors() -> int:
    """How many processors the kernel supports; 0 if it does not say."""
    try:
        ranges = [part.split("-") for part in procfs.read("/sys/devices/system/cpu/possible").split(",")]
        return sum(int(numbers[-1]) - int(numbers[0]) + 1 for numbers in ranges)
    except (OSError, ValueError):
        return 0


def why_not() -> str:
    """Why rings are useless or unavailable here, whatever the kernel offers; empty: try them."""
    queues = possible_processors()
    if len(os.sched_getaffinity(0)) < 2:
        return "one processor allowed, where it would cost more than it saves"
    if not 0 < queues <= MOST_QUEUES:
        return (
            f"{queues or 'an unknown number of'} possible processors, each of which takes a thread and {DEPTH} buffers"
        )
    return ""


def try_ring() -> None:
    """Make a ring and use it. Raises OSError if that is refused."""
    ring = io_uring.Ring()
    try:
        ring.enter(0)
    finally:
        ring.close()


class Entry:
    """A buffer registered with a queue. is_parked: it holds a waiting request and has been replaced."""

    __slots__ = ("index", "iovecs", "is_parked", "memory", "queue", "size", "unique", "view")

    def __init__(self, queue: Queue, index: int, payload: int) -> None:
        """payload: size in bytes."""
        self.queue, self.index, self.size = queue, index, payload
        self.unique, self.is_parked = 0, False
        self.memory = io_uring.anonymous(_PAYLOAD + payload)
        self.view = memoryview(self.memory)
        address = io_uring.buffer_address(self.memory)
        self.iovecs = address + _IOVECS
        _IOVEC_PAIR.pack_into(self.view, _IOVECS, address, _HEADER_SIZE, address + _PAYLOAD, payload)

    def forget_payload(self) -> None:
        """Return its memory to the kernel."""
        self.memory.madvise(MADV_DONTNEED, PAGESIZE, len(self.memory) - PAGESIZE)


class Queue:
    """The kernel's queue of one processor: a thread on it, its ring, and its entries. Only ``post`` may be called by other threads."""

    def __init__(self, rings: Rings, number: int) -> None:
        """number: of the processor."""
        self._rings = rings
        self.number = number
        self.ident = 0
        self._tid = 0
        self._entries: list[Entry] = []  # the kernel's number of entry n is n + 1
        self._parked = 0
        self._swollen: set[Entry] = set()
        self._posted: deque[Posted] = deque()
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._event = file_syscalls.eventfd()
        os.set_blocking(self._event, True)  # a ring's read waits for it
        self._heard = io_uring.anonymous(8)
        self._thread = threading.Thread(target=self._run, name=f"ring-{number}", daemon=True)

    def begin(self) -> None:
        """Start the thread. Raises RuntimeError if that fails."""
        self._thread.start()

    # any thread

    def post(self, entry: Entry, number: int, payload: bytes | None) -> None:
        """Have the thread send an answer."""
        self._posted.append((entry, number, payload))
        self.wake()

    def wake(self) -> None:
        """Have the thread check for posted answers, and whether it is to end."""
        with self._rings.mutex:
            if self._event >= 0:
                os.write(self._event, file_syscalls.EVENT)

    def go(self, registers: bool) -> None:
        """Let the thread register its entries, or end."""
        self._go.put(registers)

    def join(self) -> None:
        """Wait for the thread, after ``wake`` or ``go``."""
        if self._thread.ident is not None:
            self._thread.join(_LAST_WORDS)
        with self._rings.mutex:
            event, self._event = self._event, -1
        if event >= 0 and not self._thread.is_alive():
            os.close(event)

    def has_room(self) -> bool:
        """Whether one more of its requests can wait."""
        return self._parked < MOST - DEPTH

    # the thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.ident, self._tid = threading.get_ident(), threading.get_native_id()
        if self.number in os.sched_getaffinity(0):
            with suppress(OSError):
                os.sched_setaffinity(0, (self.number,))
        try:
            self._ring = ring = io_uring.Ring()
        except OSError as error:
            self._rings.reports.put(error)
            return
        try:
            self._listen()
            ring.enter(0)  # a seccomp filter may allow one of the calls only
            self._rings.reports.put(None)
            if self._go.get():
                self._register()
                self._serve()
        except OSError as error:
            self._rings.failed(self.number, error)
            self._rings.reports.put(error)
        finally:
            ring.close()

    def _listen(self) -> None:
        self._ring.prepare(io_uring.IORING_OP_READ, self._event, io_uring.buffer_address(self._heard), 8, _LISTEN)

    def _register(self) -> None:
        """Register the first entries. Raises OSError if the kernel refuses one."""
        self._keep_some_free()
        self._ring.enter(0)
        completed = self._ring.completions()
        refused = [result for data, result in completed if data != _LISTEN and result < 0]
        if refused:
            raise OSError(-refused[0], f"FUSE_IO_URING_CMD_REGISTER: {os.strerror(-refused[0])}")
        self._rings.reports.put(None)
        for data, _ in completed:
            self._completed(data, 0)

    def _keep_some_free(self) -> None:
        while len(self._entries) - self._parked < DEPTH and len(self._entries) < MOST:
            entry = Entry(self, len(self._entries) + 1, self._rings.payload)
            self._entries.append(entry)
            self._ring.prepare(
                io_uring.IORING_OP_URING_CMD, self._rings.fuse_fd, entry.iovecs, 2, entry.index,
                wire.IO_URING_CMD_REGISTER, 0, self.number,
            )  # fmt: skip

    def _serve(self) -> None:
        ring = self._ring
        while True:
            ring.enter(1)
            completed = ring.completions()
            if self._swollen:
                self._shrink({data for data, _ in completed})
            for data, result in completed:
                if ring.pending:
                    ring.enter(0)  # an answer that is ready does not wait for another
                if result in _GONE or self._rings.is_closing:
                    return
                self._completed(data, result)

    def _completed(self, data: int, result: int) -> None:
        if data == _LISTEN:
            self._listen()
            self._answer_posted()
        elif result >= 0:
            self._take(self._entries[data - 1])
        else:
            raise OSError(-result, f"FUSE_IO_URING_CMD_COMMIT_AND_FETCH: {os.strerror(-result)}")

    def _take(self, entry: Entry) -> None:
        """Serve the request in the entry."""
        rings, view = self._rings, entry.view
        header = _unpack_header(view)
        _, entry.unique, size = _unpack_in_out(view, _IN_OUT)
        argument = header[0] - wire.IN_HEADER.size - size
        if not (0 <= argument <= _ARGUMENT_SIZE and size <= entry.size):
            raise OSError(errno.EPROTO, f"a request of {header[0]} bytes with a payload of {size}")
        start = _PAYLOAD - argument
        view[start:_PAYLOAD] = view[_ARGUMENT : _ARGUMENT + argument]
        rings.entries[entry.unique] = entry
        with rings.serving:
            rings.heartbeat.counters[4] = self._tid
            rings.serve(header, view[start : _PAYLOAD + size])
        if entry.unique in rings.entries:
            entry.is_parked = True
            self._parked += 1
            if header[1] == wire.SETLKW:
                rings.on_change()  # for lost.SignalWatch
            if size > _SMALL:
                entry.forget_payload()  # everything needed was copied
            self._keep_some_free()

    def _answer_posted(self) -> None:
        while self._posted:
            entry, number, payload = self._posted.popleft()
            if entry.is_parked:
                entry.is_parked = False
                self._parked -= 1
            self.commit(entry, number, payload)

    def commit(self, entry: Entry, number: int, payload: bytes | None) -> None:
        """Answer, and queue the entry for the next request, both with the next ``enter``. number: an errno, or 0."""
        size, view = len(payload) if payload else 0, entry.view
        if size > entry.size:
            log.error("an answer of %d bytes, where %d fit", size, entry.size)
            size, payload, number = 0, None, errno.EIO
        _pack_error(view, 0, 16 + size, -number)
        _pack_payload_size(view, _IN_OUT + 16, size)
        if payload:
            view[_PAYLOAD : _PAYLOAD + size] = payload
            if size > _SMALL and entry.index > DEPTH:
                self._swollen.add(entry)
        self._ring.prepare(
            io_uring.IORING_OP_URING_CMD, self._rings.fuse_fd, 0, 0, entry.index,
            wire.IO_URING_CMD_COMMIT_AND_FETCH, entry.unique, self.number,
        )  # fmt: skip

    def flush(self) -> None:
        """Submit the answers to the kernel."""
        self._ring.enter(0)

    def _shrink(self, completed: set[int]) -> None:
        """Free the buffers that wait in the kernel without a request: one arrives only within our ``enter``, and is completed."""
        for entry in list(self._swollen):
            if entry.index not in completed:
                entry.forget_payload()
                self._swollen.discard(entry)


class Rings:
    """The queues of one connection."""

    def __init__(self, fuse_fd: int, heartbeat: Heartbeat, serve: Serve, on_change: Callable[[], object]) -> None:
        """Make the threads and rings, before INIT is answered. Raises OSError, RuntimeError if that fails.

        serve: called with a request's header and body, ``serving`` held; on_change: called when no more requests come, or one waits.
        """
        self.fuse_fd, self.heartbeat, self.serve, self.on_change = fuse_fd, heartbeat, serve, on_change
        self.serving = threading.Lock()  # held by the serving thread; the outermost lock
        queues = possible_processors()
        self.payload = min(_LARGEST, max(_SMALLEST, _MEMORY // (queues * DEPTH) // PAGESIZE * PAGESIZE))
        self.entries: dict[int, Entry] = {}  # by the request in them that is not yet answered
        self.mutex = threading.Lock()  # for the queues' events
        self.reports: SimpleQueue[OSError | None] = SimpleQueue()
        self.is_closing = self.is_broken = False
        self._early: dict[int, None] = {}
        self.queues: list[Queue] = []
        try:
            for number in range(queues):
                self.queues.append(Queue(self, number))
                self.queues[number].begin()
            self._hear()
        except (OSError, RuntimeError):
            self.close()
            raise

    def _hear(self) -> None:
        """Wait for a report from each thread. Raises OSError."""
        for error in [self.reports.get() for _ in self.queues]:
            if error is not None:
                raise error

    def start(self) -> None:
        """INIT was answered: start serving. Raises OSError if none of them can ever serve."""
        for queue in self.queues:
            queue.go(True)
        self._hear()

    def answer(self, unique: int, number: int, payload: bytes | None) -> bool:
        """Answer a request; number: an errno, or 0. False: the request came by /dev/fuse."""
        entry = self.entries.pop(unique, None)
        if entry is None:
            return False
        if threading.get_ident() == entry.queue.ident:
            entry.queue.commit(entry, number, payload)
        else:
            entry.queue.post(entry, number, payload)
        return True

    def flush(self) -> None:
        """Submit the answers of the calling thread to the kernel."""
        for queue in self.queues:
            if queue.ident == threading.get_ident():
                queue.flush()

    def has_room(self, unique: int) -> bool:
        """Whether the request may wait."""
        entry = self.entries.get(unique)
        return entry is None or entry.queue.has_room()

    def interrupted(self, unique: int) -> None:
        """Record an INTERRUPT of an unknown request: it may be arriving by another ring."""
        self._early[unique] = None
        if len(self._early) > 1024:
            del self._early[next(iter(self._early))]

    def was_interrupted(self, unique: int) -> bool:
        """Whether a request that now waits was interrupted."""
        return unique in self._early and unique in self.entries

    def failed(self, number: int, error: OSError) -> None:
        """A thread has failed, and nobody else serves its processor: end the session."""
        if not self.is_closing:
            log.error("the ring of processor %d: %s", number, error)
            self.is_broken = True
            self.on_change()

    def close(self) -> None:
        """End the threads; the session has ended."""
        self.is_closing = True
        for queue in self.queues:
            queue.go(False)
            queue.wake()
        for queue in self.queues:
            queue.join()


def make(
    fuse_fd: int, heartbeat: Heartbeat, serve: Serve, on_change: Callable[[], object], *, offered: bool
) -> Rings | None:
    """Make ``Rings``, before INIT is answered; None to use /dev/fuse, after logging why. offered: by INIT."""
    why = why_not() if offered else "not offered by this kernel (fuse.enable_uring, Linux 6.14)"
    if not why:
        try:
            return Rings(fuse_fd, heartbeat, serve, on_change)
        except (OSError, RuntimeError) as error:
            why = str(error)
    log.info("requests come by /dev/fuse, not io_uring: %s", why)
    return None


_unpack_header = wire.IN_HEADER.unpack_from
_unpack_in_out = _IN_OUT_STRUCT.unpack_from
_pack_error = _ERROR.pack_into
_pack_payload_size = _PAYLOAD_SIZE.pack_into
