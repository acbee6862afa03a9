"""Handlers of requests on a file's data, where the kernel does not read and write it itself.

A worker does what may wait for a disk, a network or another process, in time slices: a killed client waits for the end
of the current slice, and nobody else waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from time import monotonic, sleep

from cntr.cntrfs.devfuse import ioctls, wire
from cntr.cntrfs.devfuse.notify import notify
from cntr.cntrfs.devfuse.operations import Operation
from cntr.cntrfs.devfuse.request import MAX_IO, NO_ANSWER, Connection
from cntr.cntrfs.devfuse.workers import Job, sync
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.core import Core
    from cntr.cntrfs.devfuse.locks import Locks
    from cntr.cntrfs.files import DirectoryHandle, FileHandle
    from cntr.cntrfs.node import Node

_SMALL = 1 << 17  # bytes that a healthy disk writes or reserves without delay
_SLOW = 0.02  # a call that takes so many seconds means a slow disk …
_SLOW_FOR = 30.0  # … for so many seconds
_PIECE, _LARGEST_PIECE = 1 << 20, 16 << 20  # bytes copied by one system call
_OVERTAKEN = 0.005  # seconds between attempts to take a lock whose holder may be closing the file
_TURN = 0.25  # a slice of one request's copying: seconds, and at most _LONGEST_TURN bytes
_LONGEST_TURN = 256 << 20


def may_wait(node: Node, size: int) -> bool:
    """Whether reading, writing or reserving SIZE bytes of the file may take long."""
    mount = node.mount
    if mount.is_memory:
        return False
    return size > _SMALL or mount.is_remote or mount.is_pseudo or mount.slow_until > monotonic()


def _timed(node: Node, began: float) -> None:
    now = monotonic()
    if now - began > _SLOW:
        node.mount.slow_until = now + _SLOW_FOR


def _read(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    handle = c.core.files.handle(fh)
    if handle.node.mount.is_remote:
        size = min(size, MAX_IO)

        def read() -> bytes:
            fd = handle.fd
            return c.submit(handle.node, lambda job: os.pread(fd, size, offset))

        return c.ready(handle, read)
    fd, node, size = c.core.files.fd(handle), handle.node, min(size, MAX_IO)
    if node.mount.is_memory:
        return os.pread(fd, size, offset)
    if not node.mount.reads_wait and not node.mount.is_pseudo:
        try:
            got = os.preadv(fd, [c.scratch[:size]], offset, os.RWF_NOWAIT)
            if got == size or (got and offset + got >= os.fstat(fd).st_size):
                return bytes(c.scratch[:got])
        except BlockingIOError:
            pass  # not in the page cache
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            node.mount.reads_wait = True
    if node.mount.is_pseudo:
        scope = c.core.credentials.acting(c.core.files.rights.get(fh))
        return c.submit(node, lambda job: _read_made_up(fd, size, offset, scope))
    return c.submit(node, lambda job: os.pread(fd, size, offset))


def _read_made_up(fd: int, size: int, offset: int, scope: contextlib.AbstractContextManager[None]) -> bytes:
    """As who opened it, for a worker. What can't be sought in, as trace_pipe, goes on where it is."""
    with scope:
        try:
            return os.pread(fd, size, offset)
        except OSError as error:
            if error.errno != errno.ESPIPE:
                raise
            return os.read(fd, size)


def _write(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, offset, size, write_flags, _, flags, _ = wire.WRITE_IN.unpack_from(body)
    data = body[wire.WRITE_IN.size : wire.WRITE_IN.size + size]
    if len(data) < size:
        raise wire.Malformed("a WRITE cut off")
    # A page from the kernel's cache has its offset; otherwise append at the current end, which the kernel may not know.
    append = bool(flags & os.O_APPEND) and not write_flags & wire.WRITE_CACHE
    killpriv = c.caller() if write_flags & wire.WRITE_KILL_SUIDGID else None
    handle = c.core.files.handle(fh)
    fd, node = c.core.files.writing_fd(handle), handle.node
    if not may_wait(node, size) and not handle.flags & os.O_DSYNC:  # also set in O_SYNC
        began = monotonic()
        with c.core.credentials.killpriv(fd, killpriv):
            written = c.core.files.write_at(fd, offset, data, append)
        _timed(node, began)
        return wire.WRITE_OUT.pack(written, 0)
    rights, copied = c.core.files.rights.get(fh), bytes(data)  # the buffer is reused for the next request
    scope = (
        c.core.credentials.killpriv_elsewhere(fd, killpriv, node.mount.is_remote)
        if rights is None
        else c.core.credentials.acting(rights)
    )

    def work(job: Job) -> bytes:
        with scope:
            if rights is not None:
                return wire.WRITE_OUT.pack(c.core.files.write_made_up(fd, offset, copied), 0)
            return wire.WRITE_OUT.pack(c.core.files.write_at(fd, offset, copied, append), 0)

    return c.submit(node, work)


def _fsync(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
    handle, data_only = c.core.files.handle(fh), bool(flags & wire.FSYNC_FDATASYNC)

    def begin() -> bytes:
        fd = handle.fd
        return c.submit(handle.node, lambda job: _sync(c, fh, handle, fd, data_only))

    return c.ready(handle, begin)


def _sync(c: Connection, fh: int, handle: FileHandle, fd: int, data_only: bool) -> bytes | None:
    """fsync(2) for one open file. An error is told once for each: the kernel takes a fd opened since for one that was told."""
    missed = c.unsynced.pop(fh, None)
    try:
        answer = sync(fd, data_only)
    except OSError as error:
        others = list(c.core.files.handles.items())
        c.unsynced.update((number, error) for number, other in others if other.node is handle.node and number != fh)
        raise
    if missed is not None:
        raise OSError(missed.errno, os.strerror(missed.errno or 0))
    return answer


def _on_directory(c: Connection, nodeid: int, work: Callable[[int], bytes | None]) -> bytes | None:
    """Open an fd of the directory and answer with the result of WORK, which a worker runs."""

    def begin(opened: DirectoryHandle) -> bytes:
        fd = opened.fd
        return c.submit(opened.node, lambda job: _and_close(fd, lambda: work(fd)))

    return c.on((nodeid,), lambda core: core.open_directory(nodeid), begin)


def _fsyncdir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
    if fh:
        return _fsync(c, nodeid, body)
    return _on_directory(c, nodeid, lambda fd: sync(fd, bool(flags & wire.FSYNC_FDATASYNC)))


def _syncfs(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return _on_directory(c, nodeid, file_syscalls.syncfs)


def _and_close(fd: int, work: Callable[[], bytes | None]) -> bytes | None:
    try:
        return work()
    finally:
        os.close(fd)


def _fallocate(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
    c.core.options.demand_writable()
    handle = c.core.files.handle(fh)
    return c.ready(handle, lambda: _reserve(c, handle, mode, offset, length))


def _reserve(c: Connection, handle: FileHandle, mode: int, offset: int, length: int) -> bytes | None:
    fd, node, caller = c.core.files.writing_fd(handle), handle.node, c.caller().resolved()
    if length <= _SMALL and not may_wait(node, length):
        began = monotonic()
        with c.core.credentials.killpriv(fd, caller):
            file_syscalls.fallocate(fd, mode, offset, length)
        _timed(node, began)
        return None
    scope = c.core.credentials.killpriv_elsewhere(fd, caller, node.mount.is_remote)

    def work(job: Job) -> None:
        with scope:
            file_syscalls.fallocate(fd, mode, offset, length)

    return c.submit(node, work, is_interruptible=True)  # as tmpfs answers


def _lseek(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    if c.flags & wire.WRITEBACK_CACHE:  # the kernel does not write back before it asks: new data would look like a hole
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fh, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
    offset = offset - (1 << 64) if offset >> 63 else offset  # the backing file answers ENXIO to a negative offset
    handle = c.core.files.handle(fh)

    def seek() -> bytes:
        fd = handle.fd
        if handle.node.mount.is_remote:
            return c.submit(handle.node, lambda job: wire.LSEEK_OUT.pack(os.lseek(fd, offset, whence)))
        return wire.LSEEK_OUT.pack(os.lseek(fd, offset, whence))

    return c.ready(handle, seek)


def _copy(c: Connection, body: memoryview, answer: Callable[[int], bytes]) -> bytes | None:
    fh_in, offset_in, _, fh_out, offset_out, length, flags = wire.COPY_FILE_RANGE_IN.unpack_from(body)
    if flags:
        raise OSError(errno.EINVAL, "copy_file_range flags")
    core = c.core
    core.options.demand_writable()
    handle_in, handle_out = core.files.handle(fh_in), core.files.handle(fh_out)

    def begin() -> bytes:
        c.other_nodeid = handle_out.node.nodeid
        fd_in, fd_out = core.files.fd(handle_in), core.files.writing_fd(handle_out)
        remote, moved = handle_out.node.mount.is_remote, c.heartbeat.moved
        scope = core.credentials.killpriv_elsewhere(fd_out, c.caller().resolved(), remote)

        def work(job: Job) -> bytes:
            with scope:
                return answer(_copy_a_turn(job, moved, fd_in, fd_out, offset_in, offset_out, length))

        return c.submit(handle_out.node, work, other=handle_out.node.nodeid)  # the request's own file is the source

    return c.ready(handle_in, lambda: c.ready(handle_out, begin))


def _copy_a_turn(
    job: Job, moved: Callable[[], None], fd_in: int, fd_out: int, offset_in: int, offset_out: int, length: int
) -> int:
    """Copy as much as one slice allows; returns bytes. copy_file_range(2) may always copy less than asked."""
    began = monotonic()
    done, piece = 0, _PIECE
    length = min(length, _LONGEST_TURN)
    while done < length and not (done and (job.interrupted or monotonic() - began > _TURN)):
        piece_began = monotonic()
        try:
            copied = os.copy_file_range(fd_in, fd_out, min(piece, length - done), offset_in + done, offset_out + done)
        except OSError:
            if done:
                break  # report what was copied; the next request gets the error
            raise
        if not copied:
            break
        done += copied
        moved()
        if monotonic() - piece_began < _TURN / 16:
            piece = min(piece * 2, _LARGEST_PIECE)
    return done


def _copy_file_range(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return _copy(c, body, lambda done: wire.WRITE_OUT.pack(done, 0))


def _copy_file_range_64(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return _copy(c, body, wire.COPY_FILE_RANGE_OUT.pack)


def _ioctl(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, _, command, _, in_size, out_size = wire.IOCTL_IN.unpack_from(body)
    if command not in ioctls.KNOWN:  # isatty(3), called by every open() in Python: not worth opening the backing file
        c.fail(c.unique, errno.ENOTTY)
        return NO_ANSWER
    data = bytes(body[wire.IOCTL_IN.size : wire.IOCTL_IN.size + in_size])
    rights = None
    if command in ioctls.CHANGING:
        c.core.options.demand_writable()
        # Before Linux 5.13, which has this flag, the kernel does not check the caller.
        if not c.flags & wire.SETXATTR_EXT:
            rights = c.caller().rights()

    def do(core: Core) -> bytes:
        with contextlib.ExitStack() as stack:
            if fh:
                fd = core.files.handle(fh).fd
            else:
                fd = core.open_directory(nodeid).fd
                stack.callback(os.close, fd)
            stack.enter_context(core.credentials.acting(rights) if rights else core.credentials.spending())
            return ioctls.perform(fd, command, data, out_size)

    def answer(result: bytes) -> bytes:
        if command in ioctls.CHANGING:
            # The kernel does not know that ctime changed.
            notify(c.fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, -1, 0))
        return wire.IOCTL_OUT.pack(0, 0, 0, 0) + result

    if not fh:
        return c.on((nodeid,), do, answer)
    return c.ready(c.core.files.handle(fh), lambda: c.on((nodeid,), do, answer))


def _may_be_overtaking(c: Connection, handle: FileHandle, fh: int) -> bool:
    """Whether the request may have overtaken a RELEASE that was sent before it: each processor has
    a ring of its own.
    """
    return c.replies.rings is not None and c.locks.may_be_closing(handle.node, fh)


def _lock(c: Connection, body: memoryview, wait: bool) -> bytes | None:
    fh, owner, start, end, kind, pid, flags, _ = request = wire.LK_IN.unpack_from(body)
    handle = c.core.files.handle(fh)
    locks = c.locks_on(handle.node, wanted=True)
    usual = locks is c.locks and not flags & wire.LK_FLOCK
    if usual and locks.set_again(handle.node.nodeid, fh, owner, start, end, kind, pid):
        return None
    return _lock_anew(c, locks, handle, request, wait)


def _lock_anew(c: Connection, locks: Locks, handle: FileHandle, request: tuple[int, ...], wait: bool) -> bytes | None:
    fh, owner, start, end, kind, pid, flags, _ = request
    is_flock, unique = bool(flags & wire.LK_FLOCK), c.unique
    if locks is c.locks:

        def attempt(slept: None = None) -> bytes | None:
            try:
                done = locks.set(unique, handle, fh, owner, start, end, kind, pid, is_flock, wait)
                return None if done else NO_ANSWER
            except BlockingIOError:
                if not _may_be_overtaking(c, handle, fh):
                    raise
            return c.defer(handle.node, lambda job: sleep(_OVERTAKEN), attempt)

        return attempt()

    def work(job: Job) -> bytes | None:
        if locks.set(unique, handle, fh, owner, start, end, kind, pid, is_flock, wait):
            return None
        if job.interrupted:
            locks.interrupt(unique)
        return NO_ANSWER

    return c.ready(handle, lambda: c.submit(handle.node, work))


def _getlk(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, owner, start, end, kind, pid, _, _ = wire.LK_IN.unpack_from(body)
    handle = c.core.files.handle(fh)
    locks = c.locks_on(handle.node, wanted=True)
    if locks is c.locks:

        def attempt(slept: None = None) -> bytes:
            found = locks.get(handle, fh, owner, start, end, kind, pid)
            if wire.LK_OUT.unpack(found)[2] == fcntl.F_UNLCK or not _may_be_overtaking(c, handle, fh):
                return found
            return c.defer(handle.node, lambda job: sleep(_OVERTAKEN), attempt)

        return attempt()
    return c.ready(
        handle, lambda: c.submit(handle.node, lambda job: locks.get(handle, fh, owner, start, end, kind, pid))
    )


def _setlk(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return _lock(c, body, wait=False)


def _setlkw(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    c.replies.demand_room(c.unique)
    return _lock(c, body, wait=True)


def _interrupt(c: Connection, nodeid: int, body: memoryview) -> bytes:
    c.interrupt(wire.INTERRUPT_IN.unpack_from(body)[0])
    return NO_ANSWER


DATA_OPERATIONS = (
    Operation(wire.READ, "READ", 40, _read),
    Operation(wire.WRITE, "WRITE", 40, _write),
    Operation(wire.FSYNC, "FSYNC", 16, _fsync),
    Operation(wire.FSYNCDIR, "FSYNCDIR", 16, _fsyncdir),
    Operation(wire.SYNCFS, "SYNCFS", 0, _syncfs),
    Operation(wire.GETLK, "GETLK", 48, _getlk),
    Operation(wire.SETLK, "SETLK", 48, _setlk),
    Operation(wire.SETLKW, "SETLKW", 48, _setlkw),
    Operation(wire.INTERRUPT, "INTERRUPT", 8, _interrupt, is_answered=False),
    Operation(wire.FALLOCATE, "FALLOCATE", 32, _fallocate),
    Operation(wire.LSEEK, "LSEEK", 24, _lseek),
    Operation(wire.COPY_FILE_RANGE, "COPY_FILE_RANGE", 56, _copy_file_range),
    Operation(wire.COPY_FILE_RANGE_64, "COPY_FILE_RANGE_64", 56, _copy_file_range_64),
    Operation(wire.IOCTL, "IOCTL", 32, _ioctl),
)
