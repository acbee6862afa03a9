"""Handlers of the requests that open and close files and directories, and list them."""

from __future__ import annotations

import errno
import os
import stat

from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.namespace_ops import creator, extensions, label
from cntr.cntrfs.devfuse.notify import notify
from cntr.cntrfs.devfuse.operations import Operation
from cntr.cntrfs.devfuse.request import NO_ANSWER, Connection
from cntr.cntrfs.node import stale
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.backing import Caller
    from cntr.cntrfs.devfuse.workers import Job
    from cntr.cntrfs.files import DirectoryHandle
    from cntr.cntrfs.node import Node

_LARGE = 64 << 20  # bytes that are not freed in no time
_ENTRY_SIZE = wire.ENTRY_OUT.size
_NO_ENTRY = bytes(_ENTRY_SIZE)
_DOTS = (b".", b"..")


def _open_flags(c: Connection, node: Node, fd: int, mode: int, fh: int) -> tuple[int, int]:
    """(FOPEN_* flags, backing id) of a new open file."""
    handle = c.core.files.handles[fh]
    backing_id = c.passthrough.opened(node, fd, mode)
    if backing_id:
        handle.passthrough = True
        if handle.flags & os.O_ACCMODE == os.O_RDWR:
            c.passthrough.may_be_mapped(node)
        answer = wire.FOPEN_PASSTHROUGH
    elif c.direct_io or handle.uncached or node.mount.is_pseudo:  # there, a size of 0 would be taken for the end
        answer = wire.FOPEN_DIRECT_IO
    else:
        answer = wire.FOPEN_KEEP_CACHE if c.keep_cache else 0
    if backing_id and len(c.core.files.handles) > c.core.fds.max_fds:
        c.let_go(handle, fh)  # fds get scarce, and the kernel holds the file itself now
    if c.local_locks or (not handle.writable and not node.mount.is_remote and not c.locks.has_owners(node)):
        # Else a FLUSH is how the kernel says that a process closed one of its fds, which ends its POSIX locks. Who takes one
        # by a file that was open for reading before there were any keeps it until that open file is gone.
        answer |= wire.FOPEN_NOFLUSH
    return answer, backing_id


def _open(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, open_flags = wire.OPEN_IN.unpack_from(body)
    core = c.core
    node = core.nodes.get(nodeid)
    if node.kind != stat.S_IFREG:  # the kernel asks for no other, unless the inode number is another file's now
        raise stale()  # a FIFO would be waited for
    if c.passthrough.enabled and not flags & (os.O_ACCMODE | os.O_TRUNC):
        # The kernel opens what it was given without asking whether the file is immutable or append-only. To write it is
        # opened here: of every error that the kernel meets it makes EIO.
        fd, mode, _ = core.nodes.fd_and_mode(node)
        core.demand_open(node, flags, mode)
        return _opened(c, node, -1, fd, mode, flags)
    core.demand_open(node, flags)
    wanted = core.files.backing_flags(flags)
    killpriv = c.caller() if flags & os.O_TRUNC and open_flags & wire.OPEN_KILL_SUIDGID else None
    path_fd = core.fds.fd(node)
    if node.mount.is_remote or (flags & os.O_TRUNC and os.fstat(path_fd).st_size > _LARGE):
        return _open_elsewhere(c, node, path_fd, flags, wanted, killpriv)
    try:
        with core.credentials.killpriv(path_fd, killpriv):
            fd = core.files.open_file(proc_path(path_fd), wanted | os.O_NONBLOCK, flags)
    except BlockingIOError:  # somebody has a lease, fcntl(2), who has now been told to give it up
        if flags & os.O_NONBLOCK:
            raise
        return _open_elsewhere(c, node, path_fd, flags, wanted, killpriv)
    if node.mount.is_pseudo and not flags & os.O_NONBLOCK:
        os.set_blocking(fd, True)  # on a disk it means nothing
    return _opened(c, node, fd, path_fd, os.fstat(fd).st_mode, flags)


def _open_elsewhere(c: Connection, node: Node, path_fd: int, flags: int, wanted: int, killpriv: Caller | None) -> bytes:
    """Open it by a worker: the open may wait, or truncate much."""
    scope = c.core.credentials.killpriv_elsewhere(path_fd, killpriv)
    own_fd = c.core.fds.retrying(lambda: os.dup(path_fd))

    def work(job: Job) -> int:
        try:
            with scope:
                return file_syscalls.open_interruptible(proc_path(own_fd), wanted)
        finally:
            os.close(own_fd)

    def then(fd: int) -> bytes:
        return _opened(c, c.core.nodes.get(node.nodeid), fd, fd, os.fstat(fd).st_mode, flags)

    return c.defer(node, work, then, is_interruptible=True)


def _opened(c: Connection, node: Node, fd: int, known_fd: int, mode: int, flags: int) -> bytes:
    """The answer to an OPEN: fd is the open file's, or -1 while nothing needs one; known_fd any of the same file."""
    core = c.core
    fh = core.files.add(node, fd, flags)
    if fd >= 0:
        core.files.note_append_only(core.files.handles[fh])
    answer, backing_id = _open_flags(c, node, known_fd, mode, fh)
    if fd < 0 and not backing_id:
        try:
            core.files.fd(core.files.handles[fh])
        except OSError:
            core.files.release(fh)
            c.passthrough.released(node)
            raise
    return wire.OPEN_OUT.pack(fh, answer, backing_id)


def _create(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    arguments, contexts, groups = extensions(c, body)
    (name,) = wire.split_names(arguments[16:], 1)
    node, attributes, fh = c.core.create(nodeid, name, flags, mode, creator(c, umask, groups))
    label(c, node, contexts)
    answer = _open_flags(c, node, c.core.files.handles[fh].fd, attributes.mode, fh)  # first: it decides on the timeouts
    return c.entry(node, attributes) + wire.OPEN_OUT.pack(fh, *answer)


def _tmpfile(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    _, contexts, groups = extensions(c, body)
    node, attributes, fh = c.core.tmpfile(nodeid, flags, mode, creator(c, umask, groups))
    label(c, node, contexts)
    answer = _open_flags(c, node, c.core.files.handles[fh].fd, attributes.mode, fh)
    return c.entry(node, attributes) + wire.OPEN_OUT.pack(fh, *answer)


def _flush(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, _, _, owner = wire.FLUSH_IN.unpack_from(body)
    node = c.core.nodes.known(nodeid)
    if node is None:
        return None
    c.locks.flushed(node, owner)
    handle = c.core.files.handles.get(fh)
    if handle is not None and handle.fd >= 0 and node.mount.is_remote:
        # Closing writes what is not yet written there, waits for that, and says what went wrong.
        fd = handle.fd
        fd = c.core.files.detach(handle) if c.can_let_go(handle, fh) else c.core.fds.retrying(lambda: os.dup(fd))
        return c.submit(node, lambda job: os.close(fd))
    if handle is not None:
        # The RELEASE comes when close(2) has returned, and somebody may want to run the file by then. Whoever has the
        # open file still, by another fd, can have it opened anew.
        c.let_go(handle, fh)
    return None


def _release(c: Connection, nodeid: int, body: memoryview) -> None:
    fh = wire.RELEASE_IN.unpack_from(body)[0]
    handle = c.core.files.handles.get(fh)
    if handle is not None:
        if handle.fd >= 0 and handle.node.mount.is_remote:
            fd = c.core.files.detach(handle)
            c.workers.run(lambda: os.close(fd), handle.node.mount.dev)
        c.core.files.release(fh)
        c.locks.released(handle, fh)
        c.passthrough.released(handle.node)


def _opendir(c: Connection, nodeid: int, body: memoryview) -> bytes:
    if c.cache_directories and c.flags & wire.NO_OPENDIR_SUPPORT:
        # It does not ask again: each directory is read without being opened, and each listing kept.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fh = c.core.opendir(nodeid)
    answer = 0
    if c.cache_directories and c.core.files.handles[fh].node.mount.watched:
        answer = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE
    return wire.OPEN_OUT.pack(fh, answer, 0)


def _directory(c: Connection, nodeid: int, fh: int) -> DirectoryHandle:
    return c.core.files.directory(fh) if fh else c.core.listing(nodeid)


def _read_to_the_end(c: Connection, nodeid: int, fh: int) -> bytes | None:
    """The empty answer, which ends a listing; where changes are not told of, the kernel must not keep it after all."""
    if fh:
        return b""
    watched = c.core.listing(nodeid).node.mount.watched
    c.core.files.end_listing(nodeid)
    if watched:
        return b""
    c.answer(c.unique, b"")
    c.replies.flush()
    # Takes no lock of the directory's. Its mtime alone would not do: /proc has no use for it, and a tick may hold two changes.
    notify(c.fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, 0, 0))
    return NO_ANSWER


def _releasedir(c: Connection, nodeid: int, body: memoryview) -> None:
    c.core.files.release(wire.RELEASE_IN.unpack_from(body)[0])


def _readdir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    directory = _directory(c, nodeid, fh)
    base = directory.node.mount.base
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
    base = directory.node.mount.base
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


FILE_OPERATIONS = (
    Operation(wire.OPEN, "OPEN", 8, _open),
    Operation(wire.CREATE, "CREATE", 18, _create, 16),
    Operation(wire.TMPFILE, "TMPFILE", 16, _tmpfile),
    Operation(wire.FLUSH, "FLUSH", 24, _flush),
    Operation(wire.RELEASE, "RELEASE", 24, _release),
    Operation(wire.OPENDIR, "OPENDIR", 8, _opendir),
    Operation(wire.RELEASEDIR, "RELEASEDIR", 24, _releasedir),
    Operation(wire.READDIR, "READDIR", 40, _readdir),
    Operation(wire.READDIRPLUS, "READDIRPLUS", 40, _readdirplus),
)
