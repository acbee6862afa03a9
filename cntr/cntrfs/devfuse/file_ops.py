"""Handlers of the requests that open and close files and directories, and list them."""

from __future__ import annotations

import errno
import os
import stat

from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.creating import creator, extensions, label
from cntr.cntrfs.devfuse.notify import notify
from cntr.cntrfs.devfuse.operations import Operation
from cntr.cntrfs.devfuse.request import NO_ANSWER, Connection
from cntr.cntrfs.node import stale
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.backing import Caller
    from cntr.cntrfs.core import Core
    from cntr.cntrfs.devfuse.locks import Locks
    from cntr.cntrfs.devfuse.workers import Job
    from cntr.cntrfs.files import DirectoryHandle, FileHandle
    from cntr.cntrfs.node import Node
    from cntr.linux.file_syscalls import Attributes

_LARGE = 64 << 20  # bytes that take long to free
_ENTRY_SIZE = wire.ENTRY_OUT.size
_NO_ENTRY = bytes(_ENTRY_SIZE)
_DOTS = (b".", b"..")


def _open_flags(c: Connection, node: Node, fd: int, mode: int, fh: int) -> tuple[int, int]:
    """(FOPEN_* flags, backing id) of a new open file."""
    handle = c.core.files.handles[fh]
    backing_id = c.passthrough.opened(node, fd, mode, writes=handle.writable)
    if backing_id:
        handle.passthrough = True
        if handle.flags & os.O_ACCMODE == os.O_RDWR:
            c.passthrough.may_be_mapped(node)
        answer = wire.FOPEN_PASSTHROUGH
    # with a size of 0 the kernel would see the end of file
    elif c.direct_io or handle.uncached or node.mount.is_pseudo:
        answer = wire.FOPEN_DIRECT_IO
    else:
        answer = wire.FOPEN_KEEP_CACHE if c.keep_cache else 0
    if backing_id and len(c.core.files.handles) > c.core.fds.max_fds:
        c.let_go(handle, fh)  # fds become scarce, and the kernel now holds the file itself
    if c.local_locks:
        # Otherwise the kernel sends a FLUSH when a process closes one of its fds, which ends its POSIX locks. The FLUSH
        # is needed even for a file open for reading only: a later lock would outlive its owner if a child process
        # shares the file.
        answer |= wire.FOPEN_NOFLUSH
    return answer, backing_id


def _open(c: Connection, nodeid: int, body: memoryview) -> bytes:
    flags, open_flags = wire.OPEN_IN.unpack_from(body)
    core = c.core
    node = core.nodes.get(nodeid)
    if node.kind != stat.S_IFREG:  # the kernel opens regular files only, unless the inode number was reused
        raise stale()  # opening a FIFO would block
    if node.mount.is_remote:
        return _open_remote(c, node, flags, core.files.backing_flags(flags), _truncator(c, flags, open_flags))
    if node.mount.is_pseudo:
        return _open_pseudo(c, node, flags)
    if c.passthrough.enabled and not flags & (os.O_ACCMODE | os.O_TRUNC):
        # The kernel opens a backing file without checking whether it is immutable or append-only. A file opened for
        # writing is opened here as well: the kernel turns every error of its own open into EIO.
        if node.fd < 0 and node.has_derived_handle:
            with core.credentials.reopening():  # each change of credentials costs 2 us
                fd, mode, _ = core.nodes.fd_and_mode(node)
                core.demand_open(node, flags, mode)
                c.passthrough.prepare(node, fd, mode)
        else:
            fd, mode, _ = core.nodes.fd_and_mode(node)
            core.demand_open(node, flags, mode)
        return _opened(c, node, -1, fd, mode, flags)
    core.demand_open(node, flags)
    wanted = core.files.backing_flags(flags)
    killpriv = _truncator(c, flags, open_flags)
    path_fd = core.fds.fd(node)
    if flags & os.O_TRUNC and os.fstat(path_fd).st_size > _LARGE:
        return _open_elsewhere(c, node, path_fd, flags, wanted, killpriv)
    try:
        with core.credentials.killpriv(path_fd, killpriv):
            fd = core.files.open_file(proc_path(path_fd), wanted | os.O_NONBLOCK, flags)
    except BlockingIOError:  # somebody holds a lease, fcntl(2), and has now been notified
        if flags & os.O_NONBLOCK:
            raise
        return _open_elsewhere(c, node, path_fd, flags, wanted, killpriv)
    return _opened(c, node, fd, path_fd, os.fstat(fd).st_mode, flags)


def _truncator(c: Connection, flags: int, open_flags: int) -> Caller | None:
    """Who truncates the file by this open, if its set-id bits may have to be cleared with its
    content.

    Before HANDLE_KILLPRIV_V2 (Linux 5.11) the kernel does not tell the server. It clears them
    itself before any other truncation, but not for an open that truncates (ATOMIC_O_TRUNC).
    """
    told = open_flags & wire.OPEN_KILL_SUIDGID or not c.flags & wire.HANDLE_KILLPRIV_V2
    return c.caller() if flags & os.O_TRUNC and told else None


def _open_pseudo(c: Connection, node: Node, flags: int) -> bytes:
    """Open a file whose content the kernel makes up, for the caller itself: it may look or be another to others."""
    fh = c.core.open(node.nodeid, flags, c.caller())
    return wire.OPEN_OUT.pack(fh, *_open_flags(c, node, c.core.files.handles[fh].fd, 0, fh))


def _open_remote(c: Connection, node: Node, flags: int, wanted: int, killpriv: Caller | None) -> bytes:
    nodeid = node.nodeid

    def do(core: Core) -> tuple[int, int]:
        lent = core.nodes.get(nodeid)
        core.demand_open(lent, flags)
        path_fd = core.fds.fd(lent)
        with core.credentials.killpriv(path_fd, killpriv):
            fd = core.files.open_file(proc_path(path_fd), wanted, flags)
        return fd, os.fstat(fd).st_mode

    def then(opened: tuple[int, int]) -> bytes:
        fd, mode = opened
        node = c.core.nodes.get(nodeid)
        return _opened(c, node, fd, node.fd if node.fd >= 0 else fd, mode, flags)

    return c.elsewhere([node], do, then, node.mount.dev)


def _open_elsewhere(c: Connection, node: Node, path_fd: int, flags: int, wanted: int, killpriv: Caller | None) -> bytes:
    """Have a worker open it: the open may block, or truncate a large file."""
    scope = c.core.credentials.killpriv_elsewhere(path_fd, killpriv, remote=False)
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
    """The answer to an OPEN. fd: the open file's, -1 if none is needed yet; known_fd: any fd of the same file."""
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


def _create(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    arguments, contexts, groups = extensions(c, body)
    (name,) = wire.split_names(arguments[16:], 1)
    caller = creator(c, umask, groups)
    return c.on(
        (nodeid,),
        lambda core: core.create(nodeid, name, flags, mode, caller),
        lambda made: _created(c, contexts, *made),
    )


def _tmpfile(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    _, contexts, groups = extensions(c, body)
    caller = creator(c, umask, groups)
    return c.on(
        (nodeid,), lambda core: core.tmpfile(nodeid, flags, mode, caller), lambda made: _created(c, contexts, *made)
    )


def _created(c: Connection, contexts: list[tuple[bytes, bytes]], node: Node, attributes: Attributes, fh: int) -> bytes:
    label(c, node, contexts)
    known_fd = node.fd if node.mount.is_remote and node.fd >= 0 else c.core.files.handles[fh].fd
    answer = _open_flags(c, node, known_fd, attributes.mode, fh)  # first, because it decides on the timeouts
    return c.entry(node, attributes) + wire.OPEN_OUT.pack(fh, *answer)


def _flush(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, _, _, owner = wire.FLUSH_IN.unpack_from(body)
    node = c.core.nodes.known(nodeid)
    if node is None:
        return None
    handle, locks = c.core.files.handles.get(fh), c.locks_on(node)
    if node.mount.is_remote:
        fd = handle.fd if handle is not None else -1
        if handle is not None and fd >= 0:
            # Closing may write data back, wait for that, and report errors.
            fd = c.core.files.detach(handle) if c.can_let_go(handle, fh) else c.core.fds.retrying(lambda: os.dup(fd))

        def close(job: Job) -> None:
            try:
                locks.flushed(node, owner)
            finally:
                if fd >= 0:
                    os.close(fd)

        return c.submit(node, close)
    locks.flushed(node, owner, fh)
    if handle is not None:
        # RELEASE arrives after close(2) has returned, and by then somebody may want to execute the file. Another
        # process that still has the open file can have it reopened.
        c.let_go(handle, fh)
    return None


def _release(c: Connection, nodeid: int, body: memoryview) -> None:
    fh = wire.RELEASE_IN.unpack_from(body)[0]
    handle = c.core.files.handles.get(fh)
    if handle is not None:
        locks, fd = c.locks_on(handle.node), -1
        if handle.node.mount.is_remote:
            if handle.fd >= 0:
                fd = c.core.files.detach(handle)
            c.workers.run(lambda: _close_remote(locks, handle, fh, fd), handle.node.mount.dev)
        c.core.files.release(fh)
        if not handle.node.mount.is_remote:
            locks.released(handle, fh)
        c.passthrough.released(handle.node)
        if c.unsynced:
            c.unsynced.pop(fh, None)


def _close_remote(locks: Locks, handle: FileHandle, fh: int, fd: int) -> None:
    if fd >= 0:
        os.close(fd)
    locks.released(handle, fh)


def _opendir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    if c.cache_directories and c.flags & wire.NO_OPENDIR_SUPPORT:
        # The kernel stops asking: it reads directories without opening them, and caches listings.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return c.on((nodeid,), lambda core: core.open_directory(nodeid), lambda opened: _opened_directory(c, opened))


def _opened_directory(c: Connection, opened: DirectoryHandle) -> bytes:
    fh = c.core.files.enter(opened)
    answer = 0
    if c.cache_directories and opened.node.mount.watched:
        answer = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE
    return wire.OPEN_OUT.pack(fh, answer, 0)


def _with_entries(
    c: Connection, nodeid: int, fh: int, offset: int, answer: Callable[[DirectoryHandle], bytes | None]
) -> bytes | None:
    """Return ANSWER for the directory once the entries after OFFSET are read, by a worker if that may block."""
    files = c.core.files
    if not c.core.mounts.any_remote or not c.core.nodes.get(nodeid).mount.is_remote:
        return answer(files.directory(fh) if fh else c.core.listing(nodeid))
    directory = files.directory(fh) if fh else files.known_listing(nodeid)
    if directory is None:

        def opened(made: DirectoryHandle) -> bytes | None:
            files.add_listing(made)
            return _with_entries(c, nodeid, fh, offset, answer)

        return c.on((nodeid,), lambda core: core.open_directory(nodeid), opened)
    if directory.has(offset):
        return answer(directory)
    listed = directory
    fd = c.core.fds.retrying(lambda: os.dup(listed.fd))

    def read(job: Job) -> list[file_syscalls.DirectoryEntry]:
        try:
            with listed.reading:
                os.lseek(fd, offset, os.SEEK_SET)
                return file_syscalls.getdents(fd, shared=False)
        finally:
            os.close(fd)

    def then(entries: list[file_syscalls.DirectoryEntry]) -> bytes | None:
        listed.refill(offset, entries)
        return answer(listed)

    return c.defer(directory.node, read, then)


def _read_to_the_end(c: Connection, nodeid: int, fh: int) -> bytes | None:
    """The empty answer that ends a listing. The kernel must not cache the listing if it is not told of changes."""
    if fh:
        return b""
    c.core.files.end_listing(nodeid)
    if c.core.nodes.get(nodeid).mount.watched:
        return b""
    c.answer(c.unique, b"")
    c.replies.flush()
    # This takes no lock of the directory. Comparing mtime is not enough: /proc does not maintain it, and one tick may
    # hold two changes.
    notify(c.fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, 0, 0))
    return NO_ANSWER


def _releasedir(c: Connection, nodeid: int, body: memoryview) -> None:
    c.core.files.release(wire.RELEASE_IN.unpack_from(body)[0])


def _readdir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)

    def answer(directory: DirectoryHandle) -> bytes | None:
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

    return _with_entries(c, nodeid, fh, offset, answer)


def _readdirplus(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    return _with_entries(
        c, nodeid, fh, offset, lambda directory: _listed_with_attributes(c, nodeid, fh, directory, offset, size)
    )


def _listed_with_attributes(
    c: Connection, nodeid: int, fh: int, directory: DirectoryHandle, offset: int, size: int
) -> bytes | None:
    core = c.core
    base = directory.node.mount.base
    list_entry, entry_of, pack_dirent = core.list_entry, c.entry_of, wire.pack_dirent
    names_only = directory.node.mount.is_remote  # reading their attributes would block for each entry
    parts: list[bytes] = []
    room = size
    for ino, next_offset, kind, name in core.entries(directory, offset):
        dirent = pack_dirent(base | ino, next_offset, kind, name)
        room -= _ENTRY_SIZE + len(dirent)
        if room < 0:
            break
        if name not in _DOTS and not names_only:
            try:
                parts.append(entry_of(*list_entry(directory, name), nodeid))
            except OSError:  # removed after the directory was read: list the name without a lookup
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
