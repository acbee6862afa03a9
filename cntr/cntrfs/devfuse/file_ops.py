"""Handlers of the requests on open files and directories: ``(connection, node id, body) -> payload``."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from cntr.cntrfs.devfuse import ioctls, wire
from cntr.cntrfs.devfuse.namespace_ops import creator, extensions, label
from cntr.cntrfs.devfuse.notify import notify
from cntr.cntrfs.devfuse.request import NO_ANSWER, Connection
from cntr.cntrfs.devfuse.workers import sync
from cntr.linux import file_syscalls

if TYPE_CHECKING:
    from cntr.cntrfs.devfuse.namespace_ops import Handler
    from cntr.cntrfs.files import DirectoryHandle
    from cntr.cntrfs.node import Node

MAX_IO = 1 << 20  # bytes in one READ or WRITE: what INIT agrees on
_GUARDED = file_syscalls.STATX_ATTR_IMMUTABLE | file_syscalls.STATX_ATTR_APPEND
_ENTRY_SIZE = wire.ENTRY_OUT.size
_NO_ENTRY = bytes(_ENTRY_SIZE)
_DOTS = (b".", b"..")


def _open_flags(c: Connection, node: Node, fd: int, mode: int, fh: int) -> tuple[int, int]:
    """(FOPEN_* flags, backing id) of a new open file."""
    handle = c.core.handles[fh]
    backing_id = c.passthrough.opened(node, fd, mode)
    if backing_id:
        handle.passthrough = True
        if handle.flags & os.O_ACCMODE == os.O_RDWR:
            c.passthrough.may_be_mapped(node)
        answer = wire.FOPEN_PASSTHROUGH
    elif c.direct_io or handle.uncached or node.slot.is_pseudo:  # there, a size of 0 would be taken for the end
        answer = wire.FOPEN_DIRECT_IO
    else:
        answer = wire.FOPEN_KEEP_CACHE if c.keep_cache else 0
    if backing_id and handle.fd >= 0 and len(c.core.handles) > c.core.nodes.max_fds:
        c.core.close_file(handle)  # fds get scarce, and the kernel holds the file itself now
    # No FOPEN_NOFLUSH: a FLUSH is how the kernel says that a process closed one of its fds, which ends its POSIX locks.
    return answer, backing_id


def _open(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, open_flags = wire.OPEN_IN.unpack_from(body)
    core = c.core
    node = core.nodes.get(nodeid)
    lazily = False
    core.backing_flags(flags)  # refuses what a tree served read-only refuses
    if c.passthrough.enabled and node.kind == stat.S_IFREG and not flags & os.O_TRUNC:
        # The kernel opens what it was given without asking whether the file is immutable or append-only.
        fd, mode, attributes = core.nodes.fd_and_mode(node)
        lazily = not attributes & _GUARDED
    if lazily:
        fh = core.add_file(node, -1, flags)
    else:
        fh = core.open(nodeid, flags, c.caller() if open_flags & wire.OPEN_KILL_SUIDGID else None)
        fd = core.handles[fh].fd
        mode = os.fstat(fd).st_mode
    answer, backing_id = _open_flags(c, node, fd, mode, fh)
    if lazily and not backing_id:
        try:
            core.file_fd(core.handles[fh])
        except OSError:
            core.release(fh)
            c.passthrough.released(node)
            raise
    return wire.OPEN_OUT.pack(fh, answer, backing_id)


def _create(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    arguments, contexts, groups = extensions(c, body)
    (name,) = wire.split_names(arguments[16:], 1)
    node, attributes, fh = c.core.create(nodeid, name, flags, mode, creator(c, umask, groups))
    label(c, node, contexts)
    answer = _open_flags(c, node, c.core.handles[fh].fd, attributes.mode, fh)  # first: it decides on the timeouts
    return c.entry(node, attributes) + wire.OPEN_OUT.pack(fh, *answer)


def _tmpfile(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    _, contexts, groups = extensions(c, body)
    node, attributes, fh = c.core.tmpfile(nodeid, flags, mode, creator(c, umask, groups))
    label(c, node, contexts)
    answer = _open_flags(c, node, c.core.handles[fh].fd, attributes.mode, fh)
    return c.entry(node, attributes) + wire.OPEN_OUT.pack(fh, *answer)


def _read(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    return c.core.read(fh, offset, min(size, MAX_IO))


def _write(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, offset, size, write_flags, _, flags, _ = wire.WRITE_IN.unpack_from(body)
    data = body[wire.WRITE_IN.size : wire.WRITE_IN.size + size]
    if len(data) < size:
        raise wire.Malformed("a WRITE cut off")
    # A page from the kernel's cache has its place; otherwise the end is where it is now, not where the kernel thinks.
    append = bool(flags & os.O_APPEND) and not write_flags & wire.WRITE_CACHE
    killer = c.caller() if write_flags & wire.WRITE_KILL_SUIDGID else None
    return wire.WRITE_OUT.pack(c.core.write(fh, offset, data, append=append, killer=killer), 0)


def _flush(c: Connection, nodeid: int, body: memoryview) -> None:
    _, _, _, owner = wire.FLUSH_IN.unpack_from(body)
    node = c.core.nodes.nodes.get(nodeid)
    if node is not None:
        c.locks.flushed(node, owner)


def _release(c: Connection, nodeid: int, body: memoryview) -> None:
    fh = wire.RELEASE_IN.unpack_from(body)[0]
    handle = c.core.handles.get(fh)
    if handle is not None:
        c.locks.released(handle, fh)
        c.core.release(fh)
        c.passthrough.released(handle.node)


def _fsync(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
    fd = c.core.file_fd(c.core.handle(fh))
    c.workers.submit(c.unique, lambda: sync(fd, bool(flags & wire.FSYNC_FDATASYNC)))
    return NO_ANSWER


def _fsyncdir(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
    if fh:
        return _fsync(c, nodeid, body)
    fd = c.core.open_directory(nodeid).fd

    def work() -> bytes | None:
        try:
            return sync(fd, bool(flags & wire.FSYNC_FDATASYNC))
        finally:
            os.close(fd)

    c.workers.submit(c.unique, work)
    return NO_ANSWER


def _syncfs(c: Connection, nodeid: int, body: memoryview) -> None:
    c.core.syncfs(nodeid)


def _opendir(c: Connection, nodeid: int, body: memoryview) -> bytes:
    if c.cache_directories and c.flags & wire.NO_OPENDIR_SUPPORT:
        # It does not ask again: each directory is read without being opened, and each listing kept.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fh = c.core.opendir(nodeid)
    answer = 0
    if c.cache_directories and c.core.handles[fh].node.slot.watched:
        answer = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE
    return wire.OPEN_OUT.pack(fh, answer, 0)


def _directory(c: Connection, nodeid: int, fh: int) -> DirectoryHandle:
    return c.core.directory(fh) if fh else c.core.listing(nodeid)


def _read_to_the_end(c: Connection, nodeid: int, fh: int) -> bytes | None:
    """The empty answer, which ends a listing; where changes are not told of, the kernel must not keep it after all."""
    if fh:
        return b""
    watched = c.core.listing(nodeid).node.slot.watched
    c.core.end_listing(nodeid)
    if watched:
        return b""
    c.answer(c.unique, b"")
    # Takes no lock of the directory's. Its mtime alone would not do: /proc has no use for it, and a tick may hold two changes.
    notify(c.fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, 0, 0))
    return NO_ANSWER


def _releasedir(c: Connection, nodeid: int, body: memoryview) -> None:
    c.core.release(wire.RELEASE_IN.unpack_from(body)[0])


def _readdir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    directory = _directory(c, nodeid, fh)
    base = directory.node.slot.base
    parts: list[bytes] = []
    room = size
    for entry in c.core.entries(directory, offset):
        part = wire.pack_dirent(base | entry.ino, entry.next_offset, entry.kind, entry.name)
        room -= len(part)
        if room < 0:
            break
        parts.append(part)
    return b"".join(parts) if parts else _read_to_the_end(c, nodeid, fh)


def _readdirplus(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    core = c.core
    directory = _directory(c, nodeid, fh)
    base = directory.node.slot.base
    list_entry, entry_of, pack_dirent = core.list_entry, c.entry_of, wire.pack_dirent
    parts: list[bytes] = []
    room = size
    for ino, next_offset, kind, name in core.entries(directory, offset):
        dirent = pack_dirent(base | ino, next_offset, kind, name)
        room -= _ENTRY_SIZE + len(dirent)
        if room < 0:
            break
        if name not in _DOTS:
            try:
                parts.append(entry_of(*list_entry(directory, name), nodeid))
            except OSError:  # removed since the directory was read: the name alone is listed, not looked up
                parts.append(_NO_ENTRY)
        else:
            parts.append(_NO_ENTRY)
        parts.append(dirent)
    return b"".join(parts) if parts else _read_to_the_end(c, nodeid, fh)


def _lock(c: Connection, body: memoryview, wait: bool) -> bytes | None:
    fh, owner, start, end, kind, pid, flags, _ = wire.LK_IN.unpack_from(body)
    handle = c.core.handle(fh)
    if flags & wire.LK_FLOCK:
        return None if c.locks.flock(handle, kind, wait) else NO_ANSWER
    return None if c.locks.set(handle, fh, owner, start, end, kind, pid, wait) else NO_ANSWER


def _getlk(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, owner, start, end, kind, pid, _, _ = wire.LK_IN.unpack_from(body)
    return c.locks.get(c.core.handle(fh), fh, owner, start, end, kind, pid)


def _setlk(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return _lock(c, body, wait=False)


def _setlkw(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return _lock(c, body, wait=True)


def _interrupt(c: Connection, nodeid: int, body: memoryview) -> bytes:
    c.locks.interrupt(wire.INTERRUPT_IN.unpack_from(body)[0])
    return NO_ANSWER


def _fallocate(c: Connection, nodeid: int, body: memoryview) -> None:
    fh, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
    c.core.fallocate(fh, mode, offset, length, c.caller())


def _lseek(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
    offset = offset - (1 << 64) if offset >> 63 else offset  # a negative one is ENXIO, says the backing file
    return wire.LSEEK_OUT.pack(c.core.lseek(fh, offset, whence))


def _copy(c: Connection, body: memoryview) -> int:
    fh_in, offset_in, _, fh_out, offset_out, length, flags = wire.COPY_FILE_RANGE_IN.unpack_from(body)
    if flags:
        raise OSError(errno.EINVAL, "copy_file_range flags")
    return c.core.copy_file_range(fh_in, offset_in, fh_out, offset_out, min(length, 0x7FFFF000), c.caller())


def _copy_file_range(c: Connection, nodeid: int, body: memoryview) -> bytes:
    return wire.WRITE_OUT.pack(_copy(c, body), 0)


def _copy_file_range_64(c: Connection, nodeid: int, body: memoryview) -> bytes:
    return wire.COPY_FILE_RANGE_OUT.pack(_copy(c, body))


def _ioctl(c: Connection, nodeid: int, body: memoryview) -> bytes:
    fh, _, command, _, in_size, out_size = wire.IOCTL_IN.unpack_from(body)
    if command not in ioctls.KNOWN:  # isatty(3), by every open() of Python's: no reason to open the backing file
        c.fail(c.unique, errno.ENOTTY)
        return NO_ANSWER
    data = bytes(body[wire.IOCTL_IN.size : wire.IOCTL_IN.size + in_size])
    if command in ioctls.CHANGING:
        c.core.demand_writable()
    fd = c.core.file_fd(c.core.handle(fh)) if fh else c.core.open_directory(nodeid).fd
    try:
        result = ioctls.perform(fd, command, data, out_size)
    finally:
        if not fh:
            os.close(fd)
    if command in ioctls.CHANGING:
        # The kernel does not know that ctime moved.
        notify(c.fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, -1, 0))
    return wire.IOCTL_OUT.pack(0, 0, 0, 0) + result


FILE_HANDLERS: dict[int, Handler] = {
    wire.OPEN: _open,
    wire.CREATE: _create,
    wire.TMPFILE: _tmpfile,
    wire.READ: _read,
    wire.WRITE: _write,
    wire.FLUSH: _flush,
    wire.RELEASE: _release,
    wire.FSYNC: _fsync,
    wire.FSYNCDIR: _fsyncdir,
    wire.SYNCFS: _syncfs,
    wire.OPENDIR: _opendir,
    wire.RELEASEDIR: _releasedir,
    wire.READDIR: _readdir,
    wire.READDIRPLUS: _readdirplus,
    wire.GETLK: _getlk,
    wire.SETLK: _setlk,
    wire.SETLKW: _setlkw,
    wire.INTERRUPT: _interrupt,
    wire.FALLOCATE: _fallocate,
    wire.LSEEK: _lseek,
    wire.COPY_FILE_RANGE: _copy_file_range,
    wire.COPY_FILE_RANGE_64: _copy_file_range_64,
    wire.IOCTL: _ioctl,
}
