"""Handlers of requests on names and attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.changes import NOW, Changes
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.creating import creator, extensions, label
from cntr.cntrfs.devfuse.operations import Operation
from cntr.cntrfs.devfuse.request import NO_ANSWER, Connection
from cntr.cntrfs.mounts import RemoteMount
from cntr.cntrfs.node import INO_MASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cntrfs.core import Core
    from cntr.cntrfs.devfuse.workers import Job
    from cntr.cntrfs.node import Node
    from cntr.linux.file_syscalls import Attributes

_LARGE = 64 << 20  # bytes that take long to free
_NOW = (0, NOW)
_unpack_getattr = wire.GETATTR_IN.unpack_from
_pack_entry = wire.ENTRY_OUT.pack
_NOTHING = (0,) * 16


def _lookup(c: Connection, nodeid: int, body: memoryview) -> bytes:
    name, end = bytes(body[:-1]), body[-1]
    if end or not name or b"/" in name or b"\0" in name:
        raise wire.Malformed("not the name of an entry")
    if name in (b".", b".."):  # from exported file handles
        return c.entry(*c.core.lookup(nodeid, name, c.header[6]))
    if c.core.mounts.any_remote and (parent := c.core.nodes.get(nodeid)).mount.is_remote:
        return _look_up_elsewhere(c, parent, name, parent.mount.dev)
    try:
        return _looked_up(c, nodeid, name)
    except RemoteMount:
        parent = c.core.nodes.get(nodeid)
        return _look_up_elsewhere(c, parent, name, ~parent.mount.dev)  # the mounted filesystem may hang, not this disk


def _look_up_elsewhere(c: Connection, parent: Node, name: bytes, lane: int) -> bytes:
    nodeid = parent.nodeid

    def look(core: Core) -> tuple[Node, Attributes] | None:
        with contextlib.suppress(FileNotFoundError):
            return core.lookup(nodeid, name)
        return None

    def answer(found: tuple[Node, Attributes] | None) -> bytes:
        return c.entry(*found, nodeid) if found is not None else _missing(c, nodeid)

    return c.elsewhere([parent], look, answer, lane)


def _looked_up(c: Connection, nodeid: int, name: bytes) -> bytes:
    found = c.core.lookup_entry(nodeid, name)
    if found is not None:
        return c.entry_of(*found, nodeid)
    return _missing(c, nodeid)


def _missing(c: Connection, nodeid: int) -> bytes:
    """The answer that the directory has no such name."""
    timeouts = c.timeouts(c.core.nodes.get(nodeid).mount, nodeid)
    if not timeouts[0] and not timeouts[2]:
        c.fail(c.unique, errno.ENOENT)
        return NO_ANSWER
    # Node id 0: the kernel caches that there is no such name, for the entry timeout or until an invalidation.
    return _pack_entry(0, 0, *timeouts, *_NOTHING)


def _forget(c: Connection, nodeid: int, body: memoryview) -> bytes:
    c.core.nodes.forget(nodeid, wire.FORGET_IN.unpack_from(body)[0])
    if nodeid in c.passthrough.mapped and nodeid not in c.core.nodes:
        c.passthrough.mapped.discard(nodeid)
    return NO_ANSWER


def _batch_forget(c: Connection, nodeid: int, body: memoryview) -> bytes:
    count = wire.BATCH_FORGET_IN.unpack_from(body)[0]
    start = wire.BATCH_FORGET_IN.size
    forget = c.core.nodes.forget
    end = min(start + count * 16, start + (len(body) - start) // 16 * 16)
    for one, lookups in wire.FORGET_ONE.iter_unpack(body[start:end]):
        forget(one, lookups)
        if one in c.passthrough.mapped and one not in c.core.nodes:
            c.passthrough.mapped.discard(one)
    return NO_ANSWER


def _getattr(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    flags, _, number = _unpack_getattr(body)
    fh = number if flags & 1 else None  # wire.GETATTR_FH
    if c.core.mounts.any_remote:
        return c.on((nodeid,), lambda core: core.getattr(nodeid, fh), lambda found: c.attr(*found))
    return c.attr(*c.core.getattr(nodeid, fh))


def _statx(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    flags, _, number, _, _ = wire.STATX_IN.unpack_from(body)
    fh = number if flags & wire.GETATTR_FH else None
    return c.on((nodeid,), lambda core: core.getattr(nodeid, fh), lambda found: _statx_answer(c, *found))


def _statx_answer(c: Connection, node: Node, a: Attributes) -> bytes:
    _, seconds, _, nanoseconds = c.timeouts(node.mount, node.nodeid)
    base = node.mount.base
    mode, major, minor = node.mount.allowed(a.mode, a.rdev_major, a.rdev_minor)
    ino = base | a.ino if base and a.ino <= INO_MASK else a.ino
    return wire.STATX_OUT.pack(
        seconds, nanoseconds, 0, 0, 0, a.mask & 0xFFF, a.blksize, a.attributes, a.nlink, a.uid, a.gid, mode, ino,
        a.size, a.blocks, a.attributes_mask, a.atime, a.atime_ns, a.btime, a.btime_ns, a.ctime, a.ctime_ns, a.mtime,
        a.mtime_ns, major, minor, a.dev_major, a.dev_minor,
    )  # fmt: skip


def _setattr(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    (valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = wire.SETATTR_IN.unpack_from(
        body
    )
    changes = Changes()
    if valid & wire.FATTR_MODE:
        changes.mode = mode
    if valid & wire.FATTR_UID:
        changes.uid = uid
    if valid & wire.FATTR_GID:
        changes.gid = gid
    if valid & wire.FATTR_SIZE:
        changes.size = size
    if valid & wire.FATTR_ATIME:
        changes.atime = _NOW if valid & wire.FATTR_ATIME_NOW else (_signed(atime), atime_ns)
    if valid & wire.FATTR_MTIME:
        changes.mtime = _NOW if valid & wire.FATTR_MTIME_NOW else (_signed(mtime), mtime_ns)
    if valid & wire.FATTR_KILL_SUIDGID:
        changes.killpriv = c.caller()
    number = fh if valid & wire.FATTR_FH else None
    node = c.core.nodes.get(nodeid)
    if changes.size is not None and node.kind == stat.S_IFREG and not node.mount.is_remote:
        return _resize(c, nodeid, changes, changes.size, number)
    handle = c.core.files.handles.get(fh) if number is not None else None

    def change() -> bytes | None:
        if not c.core.mounts.any_remote:
            return c.attr(*c.core.setattr(nodeid, changes, number))
        return c.on((nodeid,), lambda core: core.setattr(nodeid, changes, number), lambda found: c.attr(*found))

    return c.ready(handle, change) if handle is not None and changes.size is not None else change()


def _resize(c: Connection, nodeid: int, changes: Changes, size: int, fh: int | None) -> bytes:
    """SETATTR with a size, by a worker if much is to be freed or somebody holds a lease on the file."""
    core = c.core
    core.options.demand_writable()
    node, handle = core.nodes.get(nodeid), core.files.handles.get(fh) if fh is not None else None
    fd = core.files.writing_fd(handle) if handle is not None and handle.writable else core.fds.fd(node)
    waits = not node.mount.is_memory and size + _LARGE < os.fstat(fd).st_size
    probe = -1
    try:
        if not waits and (handle is None or not handle.writable):
            try:  # while it is open for writing nobody can take a lease
                probe = core.fds.open_retrying(proc_path(fd), os.O_WRONLY | os.O_NONBLOCK)
            except BlockingIOError:
                waits = True
        if not waits:
            return c.attr(*core.setattr(nodeid, changes, fh))
    finally:
        if probe >= 0:
            os.close(probe)
    path = None if handle is not None and handle.writable else core.fds.retrying(lambda: os.dup(fd))
    scope = core.credentials.killpriv_elsewhere(fd, changes.killpriv, remote=False)

    def work(job: Job) -> None:
        try:
            with scope:
                os.truncate(fd if path is None else proc_path(path), size)
        finally:
            if path is not None:
                os.close(path)

    def then(result: None) -> bytes:
        changes.size = None
        rest = (changes.mode, changes.uid, changes.gid, changes.atime, changes.mtime)
        return c.attr(
            *(core.setattr(nodeid, changes, fh) if any(part is not None for part in rest) else core.getattr(nodeid, fh))
        )

    return c.defer(node, work, then, is_interruptible=path is not None)


def _signed(seconds: int) -> int:
    """Times before 1970 are sent in two's complement."""
    return seconds - (1 << 64) if seconds >> 63 else seconds


def _readlink(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    return c.on((nodeid,), lambda core: core.readlink(nodeid), _as_it_is)


def _as_it_is(found: bytes) -> bytes:
    return found


def _nothing(done: None) -> None:
    """The answer to an operation without a result."""


def _made(
    c: Connection,
    parent_id: int,
    contexts: list[tuple[bytes, bytes]],
    make: Callable[[Core], tuple[Node, Attributes]],
) -> bytes | None:
    def answer(made: tuple[Node, Attributes]) -> bytes:
        label(c, made[0], contexts)
        return c.entry(*made)

    return c.on((parent_id,), make, answer)


def _mknod(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    mode, device, umask, _ = wire.MKNOD_IN.unpack_from(body)
    arguments, contexts, groups = extensions(c, body)
    (name,) = wire.split_names(arguments[16:], 1)
    number, caller = os.makedev(*wire.decode_dev(device)), creator(c, umask, groups)
    return _made(c, nodeid, contexts, lambda core: core.mknod(nodeid, name, mode, number, caller))


def _mkdir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    mode, umask = wire.MKDIR_IN.unpack_from(body)
    arguments, contexts, groups = extensions(c, body)
    (name,) = wire.split_names(arguments[8:], 1)
    caller = creator(c, umask, groups)
    return _made(c, nodeid, contexts, lambda core: core.mkdir(nodeid, name, mode & 0o7777, caller))


def _symlink(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    arguments, contexts, groups = extensions(c, body)
    name, target = wire.split_strings(arguments, 2)
    wire.split_names(name + b"\0", 1)
    caller = creator(c, 0, groups)
    return _made(c, nodeid, contexts, lambda core: core.symlink(nodeid, name, target, caller))


def _link(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    (old,) = wire.LINK_IN.unpack_from(body)
    (name,) = wire.split_names(body[8:], 1)
    return c.on((old, nodeid), lambda core: core.link(old, nodeid, name), lambda made: c.entry(*made))


def _unlink(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    (name,) = wire.split_names(body, 1)
    if c.core.mounts.any_remote:
        return c.on((nodeid,), lambda core: core.unlink(nodeid, name), _nothing)
    c.core.unlink(nodeid, name)
    return None


def _rmdir(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    (name,) = wire.split_names(body, 1)
    return c.on((nodeid,), lambda core: core.rmdir(nodeid, name), _nothing)


def _renamed(c: Connection, parent: int, new_parent: int, names: memoryview, flags: int) -> bytes | None:
    name, new_name = wire.split_names(names, 2)
    caller = c.caller()
    return c.on(
        (parent, new_parent), lambda core: core.rename(parent, name, new_parent, new_name, flags, caller), _nothing
    )


def _rename(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    (new_parent,) = wire.RENAME_IN.unpack_from(body)
    return _renamed(c, nodeid, new_parent, body[8:], 0)


def _rename2(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    new_parent, flags, _ = wire.RENAME2_IN.unpack_from(body)
    return _renamed(c, nodeid, new_parent, body[16:], flags)


def _statfs(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    nodeid = nodeid or 1
    return c.on((nodeid,), lambda core: core.statfs(nodeid), _statfs_answer)


def _statfs_answer(found: os.statvfs_result) -> bytes:
    return wire.STATFS_OUT.pack(
        found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, found.f_namemax,
        found.f_frsize, 0,
    )  # fmt: skip


def _setxattr(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    size, flags = wire.SETXATTR_IN.unpack_from(body)
    start = 8
    kill, caller = False, None
    if c.flags & wire.SETXATTR_EXT:
        if len(body) < 16:
            raise wire.Malformed("a short SETXATTR")
        kill = bool(wire.SETXATTR_EXT_IN.unpack_from(body)[2] & wire.SETXATTR_ACL_KILL_SGID)
        start = 16
    else:  # before Linux 5.13 the kernel does not check this
        caller = c.caller().resolved()
    name, separator, value = bytes(body[start:]).partition(b"\0")
    if not separator or size > len(value):
        raise wire.Malformed("an attribute cut off")
    value = value[:size]
    return c.on((nodeid,), lambda core: core.xattrs.set(nodeid, name, value, flags, caller, kill_sgid=kill), _nothing)


def _sized(c: Connection, value: bytes | None, size: int) -> bytes:
    """GETXATTR and LISTXATTR: the value, or its length if the length was asked for; ERANGE if it does not fit."""
    if value is None:
        c.fail(c.unique, errno.ENODATA)
        return NO_ANSWER
    if size == 0:
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _getxattr(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    size, _ = wire.GETXATTR_IN.unpack_from(body)
    (name,) = wire.split_strings(body[8:], 1)
    if c.core.mounts.any_remote:
        return c.on((nodeid,), lambda core: core.xattrs.find(nodeid, name), lambda value: _sized(c, value, size))
    return _sized(c, c.core.xattrs.find(nodeid, name), size)


def _listxattr(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    size, _ = wire.GETXATTR_IN.unpack_from(body)
    caller = c.caller()
    return c.on(
        (nodeid,),
        lambda core: core.xattrs.names(nodeid, caller),
        lambda names: _sized(c, b"".join(name + b"\0" for name in names), size),
    )


def _removexattr(c: Connection, nodeid: int, body: memoryview) -> bytes | None:
    (name,) = wire.split_strings(body, 1)
    return c.on((nodeid,), lambda core: core.xattrs.remove(nodeid, name), _nothing)


def _access(c: Connection, nodeid: int, body: memoryview) -> None:
    """Not used: the kernel checks itself (default_permissions)."""


def _destroy(c: Connection, nodeid: int, body: memoryview) -> None:
    """The last request of an unmount."""


NAMESPACE_OPERATIONS = (
    Operation(wire.LOOKUP, "LOOKUP", 2, _lookup, 0),
    Operation(wire.FORGET, "FORGET", 8, _forget, is_answered=False),
    Operation(wire.BATCH_FORGET, "BATCH_FORGET", 8, _batch_forget, is_answered=False),
    Operation(wire.GETATTR, "GETATTR", 16, _getattr),
    Operation(wire.STATX, "STATX", 24, _statx),
    Operation(wire.SETATTR, "SETATTR", 88, _setattr),
    Operation(wire.READLINK, "READLINK", 0, _readlink),
    Operation(wire.SYMLINK, "SYMLINK", 4, _symlink, 0),
    Operation(wire.MKNOD, "MKNOD", 18, _mknod, 16),
    Operation(wire.MKDIR, "MKDIR", 10, _mkdir, 8),
    Operation(wire.LINK, "LINK", 10, _link, 8),
    Operation(wire.UNLINK, "UNLINK", 2, _unlink, 0),
    Operation(wire.RMDIR, "RMDIR", 2, _rmdir, 0),
    Operation(wire.RENAME, "RENAME", 12, _rename, 8),
    Operation(wire.RENAME2, "RENAME2", 20, _rename2, 16),
    Operation(wire.STATFS, "STATFS", 0, _statfs),
    Operation(wire.SETXATTR, "SETXATTR", 10, _setxattr),
    Operation(wire.GETXATTR, "GETXATTR", 10, _getxattr, 8),
    Operation(wire.LISTXATTR, "LISTXATTR", 8, _listxattr),
    Operation(wire.REMOVEXATTR, "REMOVEXATTR", 2, _removexattr, 0),
    Operation(wire.ACCESS, "ACCESS", 8, _access),
    Operation(wire.DESTROY, "DESTROY", 0, _destroy),
)
