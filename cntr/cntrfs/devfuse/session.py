"""The session: INIT, then read a request, dispatch it to its handler, answer.

One thread does it all: in Python, handing a request to a second thread costs more than the system calls that would overlap. Only what may
block runs elsewhere (``workers``), and is finished here if it needs the core. With ``rings`` it is one thread at a time.
"""

from __future__ import annotations

import _signal as signal
import contextlib
import errno
import os
import select
import sys
import threading
from io import FileIO
from time import monotonic

from cntr.cntrfs import log
from cntr.cntrfs.core import Core
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.data_ops import DATA_OPERATIONS
from cntr.cntrfs.devfuse.file_ops import FILE_OPERATIONS
from cntr.cntrfs.devfuse.namespace_ops import NAMESPACE_OPERATIONS
from cntr.cntrfs.devfuse.request import MAX_IO, NO_ANSWER, Connection
from cntr.cntrfs.devfuse.watch import Watch
from cntr.cntrfs.fds import NO_SPACE
from cntr.cntrfs.nobody import NobodyCore
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.devfuse.operations import Handler, Operation
    from cntr.cntrfs.devfuse.rings import Rings
    from cntr.cntrfs.heartbeat import Heartbeat
    from cntr.cntrfs.options import Options

_BUFFER = MAX_IO + 4096
_OVERLAYFS_MAGIC = 0x794C7630
# Not ASYNC_DIO: with it, the kernel does not drop pages that are read into its cache during an asynchronous O_DIRECT write, and would
# serve stale data. Without it such writes are serial, each followed by an invalidation.
_WANTED = (
    wire.ASYNC_READ | wire.POSIX_LOCKS | wire.ATOMIC_O_TRUNC | wire.EXPORT_SUPPORT | wire.BIG_WRITES | wire.DONT_MASK
    | wire.FLOCK_LOCKS | wire.HAS_IOCTL_DIR | wire.AUTO_INVAL_DATA | wire.PARALLEL_DIROPS
    | wire.POSIX_ACL | wire.ABORT_ERROR | wire.MAX_PAGES | wire.CACHE_SYMLINKS | wire.NO_OPENDIR_SUPPORT | wire.HANDLE_KILLPRIV_V2
    | wire.SETXATTR_EXT | wire.INIT_EXT | wire.SECURITY_CTX | wire.CREATE_SUPP_GROUP | wire.HAS_EXPIRE_ONLY
    | wire.ALLOW_IDMAP
)  # fmt: skip
# An attach's command has often ended within this time, and ending a watch takes the kernel 15 ms (fanotify's marks).
_SHORT_SESSION = 1.0
#: Milliseconds between reads of /dev/fuse beside rings: one read then fetches all the FORGETs of that time. Each read takes the turn of :
#: a thread that a client waits for.
_REST = 2
_STOP_RETRY = 0.05  # seconds between attempts to interrupt the serving thread's read


class _Stop(Exception):
    """Raised by the signal handler during the read: the session ends."""


class FuseSession:
    """One connection, from INIT to its end."""

    def __init__(self, fuse_fd: int, core: Core, heartbeat: Heartbeat, on_ready: Callable[[], None]) -> None:
        """fuse_fd: of a mounted connection; on_ready: called once INIT is answered."""
        self.fd = fuse_fd
        self.core = core
        self.heartbeat = heartbeat
        self.connection = Connection(fuse_fd, core, heartbeat)
        self.on_ready = on_ready
        self.initialized = False
        self.watch: Watch | None = None
        self._watch_from = 0.0
        self.stopping = False
        self._reading = False
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._poll: select.poll | None = None  # while a deferred job is running
        self.rings: Rings | None = None
        self.handle = self._handle if self.connection.trace is None else self._handle_traced

    def init(self, body: memoryview) -> bytes:
        """INIT: agree on a version and on features; return the answer's payload."""
        major, minor, readahead, flags = wire.INIT_IN.unpack_from(body)
        if major != wire.KERNEL_VERSION or minor < wire.OLDEST_MINOR:
            # A larger major: the kernel sends INIT again with ours. An older kernel lacks what we need.
            return wire.INIT_OUT.pack(wire.KERNEL_VERSION, wire.MINOR_VERSION, *[0] * 11)
        if flags & wire.INIT_EXT and len(body) >= 20:
            flags |= int.from_bytes(body[16:20], sys.byteorder) << 32
        agreed = flags & (_WANTED | self._optional())
        if self.core.options.as_nobody:
            # no named users of ACLs, and no file handles, which bypass directories
            agreed &= ~(wire.POSIX_ACL | wire.EXPORT_SUPPORT)
            agreed &= ~(wire.POSIX_LOCKS | wire.FLOCK_LOCKS)  # a client must not block others that may write
        connection = self.connection
        connection.flags = agreed
        connection.local_locks = not agreed & (wire.POSIX_LOCKS | wire.FLOCK_LOCKS)
        connection.minor = minor
        depth = 0
        if agreed & wire.PASSTHROUGH:
            depth = 2 if file_syscalls.filesystem_magic(self.core.nodes.root.fd) == _OVERLAYFS_MAGIC else 1
            connection.passthrough.begin()
        size = MAX_IO
        if self.core.options.io_uring:
            from cntr.cntrfs.devfuse import rings

            offered = bool(flags & wire.OVER_IO_URING)
            self.rings = rings.make(self.fd, self.heartbeat, self._serve, connection.workers.wake, offered=offered)
        if self.rings is not None:
            agreed |= wire.OVER_IO_URING
            size = self.rings.payload
        return wire.INIT_OUT.pack(
            wire.KERNEL_VERSION, min(minor, wire.MINOR_VERSION), max(readahead, 1 << 20), agreed & 0xFFFFFFFF,
            64, 48, size, 1, size // 4096, 0, agreed >> 32, depth, 0,
        )  # fmt: skip

    def _optional(self) -> int:
        options = self.core.options
        flags = 0
        if options.readdirplus:
            flags |= wire.DO_READDIRPLUS | wire.READDIRPLUS_AUTO
        if options.passthrough:
            flags |= wire.PASSTHROUGH
        if options.writeback and not options.passthrough:
            flags |= wire.WRITEBACK_CACHE  # the kernel supports only one of this and passthrough
        if options.cache == "none":
            flags |= wire.DIRECT_IO_ALLOW_MMAP
        return flags

    def _watch(self) -> None:
        """Use long timeouts if the kernel can be told of changes."""
        if self.core.options.invalidate and not self.core.options.timeouts_given:
            expire = bool(self.connection.flags & wire.HAS_EXPIRE_ONLY)
            if self.core.options.keep_mounts and not expire:
                return
            try:
                with self.core.credentials.raised():
                    self.watch = Watch(self.fd, self.core, expire)
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                log.info("changes behind the mount are not watched: %s", error)

    def run(self) -> None:
        """Serve until unmounted, aborted or stopped."""
        view, handle, read = self._view, self.handle, FileIO(self.fd, closefd=False).readinto
        nodes, buffer = self.core.nodes, self._buffer
        idle, fds = nodes.idle, nodes.fds
        counters = self.heartbeat.counters
        taken = counters[0]
        workers = self.connection.workers
        try:
            while not self.stopping:
                if self.rings is not None:
                    self._run_beside(self.rings)
                    return
                if self._watch_from and monotonic() > self._watch_from:
                    self._watch_from = 0.0
                    self._watch()
                self._reading = True
                if workers.deferred and not self._wait_for_request():
                    continue
                try:
                    length = read(buffer)
                except OSError as error:
                    self._reading = False
                    if _is_over(error):
                        return
                    continue
                self._reading = False
                if length is None:  # EAGAIN
                    continue
                taken += 1
                counters[0] = taken
                handle(_unpack_header(view), view[_HEADER_SIZE:length])
                if idle or len(fds.cached) > fds.max_fds:  # nodes.needs_trim()
                    nodes.trim()
                counters[1] = taken
        except _Stop:
            return

    def _run_beside(self, rings: Rings) -> None:
        """Serve what does not come by a ring, FORGET and INTERRUPT, and finish deferred jobs."""
        from cntr.cntrfs.devfuse.lost import SignalWatch

        signals, pause = SignalWatch(rings, self.connection.interrupt), None
        done_event = self.connection.workers.done_event
        poll, rest = select.poll(), select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.register(done_event, select.POLLIN)
        rest.register(done_event, select.POLLIN)
        os.set_blocking(self.fd, False)
        while not (self.stopping or rings.is_broken):
            self._reading = True
            if self._watch_from:
                pause = max(0.0, min(self._watch_from - monotonic(), pause or 1.0))
            ready = poll.poll(None if pause is None else pause * 1000)
            self._reading = False
            with rings.serving:
                pause = signals.look()
                self.heartbeat.counters[4] = 0
                if self._watch_from and monotonic() > self._watch_from:
                    self._watch_from = 0.0
                    self._watch()
                if (done_event, select.POLLIN) in ready:
                    self.finish_deferred()
                try:
                    length = os.readv(self.fd, [self._buffer])
                except OSError as error:
                    if _is_over(error):
                        return
                else:
                    self._serve(_unpack_header(self._view), self._view[_HEADER_SIZE:length])
            rest.poll(_REST)

    def _serve(self, header: tuple[int, ...], body: memoryview) -> None:
        """Serve one request, in the thread that holds ``rings.serving``."""
        counters, rings = self.heartbeat.counters, self.rings
        counters[0] += 1
        self.handle(header, body)
        if rings is not None and rings.was_interrupted(header[2]):
            self.connection.interrupt(header[2])
        if self.core.nodes.needs_trim():
            self.core.nodes.trim()
        counters[1] += 1

    def _wait_for_request(self) -> bool:
        """Wait for a request and finish deferred jobs that end meanwhile; return whether there is a request to read.

        The following read must not block: a request can be withdrawn before it is read.
        """
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fd, select.POLLIN)
            self._poll.register(self.connection.workers.done_event, select.POLLIN)
            os.set_blocking(self.fd, False)
        ready = [fd for fd, _ in self._poll.poll()]
        self.finish_deferred()
        if not self.connection.workers.deferred:
            os.set_blocking(self.fd, True)
            self._poll = None
            return False
        return self.fd in ready

    def finish_deferred(self) -> None:
        """Answer the deferred jobs whose work is done."""
        connection = self.connection
        workers = connection.workers
        with contextlib.suppress(BlockingIOError):
            os.read(workers.done_event, 8)
        while workers.done:
            job = workers.done.popleft()
            workers.deferred -= 1
            connection.header = job.header
            unique, then = job.header[2], job.then
            try:
                if job.error is not None:
                    raise job.error
                assert then is not None
                payload = then(job.result)
            except Exception as error:  # noqa: BLE001  every mistake becomes an answer
                connection.fail(unique, log.errno_of(error))
            else:
                if payload is not NO_ANSWER:
                    connection.answer(unique, payload)

    def _handle(self, header: tuple[int, ...], body: memoryview) -> None:
        """Dispatch a request, struct fuse_in_header and body, and answer it; never raises for a bad request."""
        connection = self.connection
        connection.header = header
        _, opcode, unique, nodeid, _, _, _, _ = header
        try:
            handler, minimum = _TABLE[opcode] if opcode < _OPCODES else _UNKNOWN
            if len(body) < minimum:
                raise wire.Malformed(f"opcode {opcode} with {len(body)} bytes")
            if handler is None:
                if opcode == wire.INIT:
                    self._answer_init(unique, body)
                else:
                    connection.fail(unique, errno.ENOSYS)
                return
            payload = handler(connection, nodeid, body)
        except wire.Malformed as error:
            log.warning("malformed request: %s", error)
            connection.fail(unique, errno.EINVAL)
        except Exception as error:  # noqa: BLE001  every mistake becomes an answer
            number = log.errno_of(error)
            if number in NO_SPACE and (scope := connection.more_room()) is not None:
                with scope:
                    self._handle(header, body)
            else:
                connection.fail(unique, number)
        else:
            if payload is not NO_ANSWER:
                connection.answer(unique, payload)

    def _handle_traced(self, header: tuple[int, ...], body: memoryview) -> None:
        """``_handle`` with a trace."""
        trace = self.connection.trace
        assert trace is not None
        operation = OPERATIONS.get(header[1])
        trace.came(header[2], operation.described(header, body) if operation else _unlisted(header))
        self._handle(header, body)
        if operation is not None and not operation.is_answered:
            trace.needs_no_answer(header[2])

    def _answer_init(self, unique: int, body: memoryview) -> None:
        if len(body) < wire.INIT_IN.size:
            self.connection.fail(unique, errno.EPROTO)
            return
        self.connection.answer(unique, self.init(body))
        if self.initialized:
            return
        self.initialized = True
        if self.rings is not None:
            self.connection.replies.rings = self.rings
            self.rings.start()
        self.on_ready()  # before the watch forks: its helper must not keep the caller's stdio open
        if self.core.options.keep_mounts:
            self._watch_from = monotonic() + _SHORT_SESSION
        else:
            with self.rings.serving if self.rings is not None else contextlib.nullcontext():
                self._watch()

    def stop_when_readable(self, stop_fd: int) -> None:
        """Start a thread that ends the session once stop_fd is readable. Call from the serving (main) thread.

        A signal interrupts the serving thread's read. It is repeated until the session has ended, so a signal between two reads is not
        lost.
        """
        serving = threading.get_ident()
        ended = threading.Event()
        self._ended = ended

        def on_signal(number: int, frame: object) -> None:
            if self.stopping and self._reading:
                self._reading = False
                raise _Stop

        signal.signal(signal.SIGUSR1, on_signal)
        signal.signal(signal.SIGUSR2, lambda *_: None)  # interrupts a worker's system call

        def wait() -> None:
            self.connection.ticker.run_until_readable(stop_fd)
            self.stopping = True
            while not ended.wait(_STOP_RETRY):
                signal.pthread_kill(serving, signal.SIGUSR1)

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        threading.Thread(target=wait, name="stop", daemon=True).start()

    def close(self) -> None:
        """End the session: the connection goes with its last fd."""
        if hasattr(self, "_ended"):
            self._ended.set()
        if self.rings is not None:
            self.rings.close()
        if self.watch is not None:
            self.watch.close()
        self.connection.close()
        os.close(self.fd)


#: Every request that is answered, by opcode, except INIT.
OPERATIONS: dict[int, Operation] = {
    operation.number: operation for operation in (*NAMESPACE_OPERATIONS, *FILE_OPERATIONS, *DATA_OPERATIONS)
}
_OPCODES = 64
_UNKNOWN: tuple[Handler | None, int] = (None, 0)
#: (handler, minimum size of the body) by opcode: OPERATIONS in the form that dispatch needs.
_TABLE = [
    (OPERATIONS[number].handler, OPERATIONS[number].least) if number in OPERATIONS else _UNKNOWN
    for number in range(_OPCODES)
]
_unpack_header, _HEADER_SIZE = wire.IN_HEADER.unpack_from, wire.IN_HEADER.size


def _is_over(error: OSError) -> bool:
    """Whether a failed read means unmounted or aborted. False: the request was interrupted first. Raises any other error."""
    if error.errno not in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF, errno.ENOENT, errno.EINTR, errno.EAGAIN):
        raise error
    return error.errno in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)


def _unlisted(header: tuple[int, ...]) -> str:
    return f"{'INIT' if header[1] == wire.INIT else f'opcode {header[1]}'} unique={header[2]}"


def serve(
    fuse_fd: int, root_fd: int, options: Options, stop_fd: int, heartbeat: Heartbeat, on_ready: Callable[[], None]
) -> None:
    """Serve the mounted connection fuse_fd until it is unmounted or stop_fd is readable. Owns both fds."""
    core = (NobodyCore if options.as_nobody else Core)(root_fd, options)
    session = FuseSession(fuse_fd, core, heartbeat, on_ready)
    session.stop_when_readable(stop_fd)
    try:
        session.run()
    finally:
        session.close()
        core.close()
