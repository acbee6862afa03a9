"""The reference binding: the core behind pyfuse3 (libfuse). The only module that imports pyfuse3 and trio.

What pyfuse3 lacks, the kernel does itself or refuses: fallocate, lseek, copy_file_range, ioctl, locks (they stay local
to the mount), O_TMPFILE, passthrough. The kernel also applies the umask before pyfuse3 sees a mode. In a directory with
a default ACL that is wrong: bits of the umask are missing from the new file's mode.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from time import monotonic
from typing import Any

import pyfuse3
import trio

from cntr.cntrfs.backing import NOBODYS_GROUP, Caller
from cntr.cntrfs.changes import Changes
from cntr.cntrfs.core import Core
from cntr.cntrfs.fds import NO_SPACE
from cntr.cntrfs.log import errno_of
from cntr.cntrfs.nobody import NobodyCore
from cntr.cntrfs.node import Node
from cntr.cntrfs.options import Options
from cntr.cntrfs.trace import result, say
from cntr.linux.file_syscalls import Attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cntr.cntrfs.heartbeat import Heartbeat

NS = 1_000_000_000
_ANYBODY = Caller(65534, NOBODYS_GROUP, 0)


def _answered(operation: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make an operation fail with an errno only: any other exception would end the whole mount."""

    @functools.wraps(operation)
    async def answered(self: Operations, *arguments: Any) -> Any:
        self.heartbeat.began()
        began, number = monotonic(), 0
        try:
            return await operation(self, *arguments)
        except pyfuse3.FUSEError as error:
            number = error.errno
            raise
        except Exception as error:  # noqa: BLE001  every mistake becomes an answer
            number = errno_of(error)
            if number in NO_SPACE and self.core.fds.give_up_removed():
                return await answered(self, *arguments)
            raise pyfuse3.FUSEError(number) from None
        finally:
            if self.core.options.trace:
                shown = " ".join(repr(argument) for argument in arguments if isinstance(argument, (int, bytes)))
                took = (monotonic() - began) * 1000
                say(f"{operation.__name__.upper()} {shown[:200]} = {result(number)} {took:.3f} ms")
            self.core.nodes.trim()
            self.heartbeat.ended()

    return answered


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


class Operations(pyfuse3.Operations):
    """pyfuse3's operations, each one call into the core. None awaits anything, so they never interleave."""

    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, core: Core, heartbeat: Heartbeat, on_ready: Callable[[], None]) -> None:
        """on_ready: called when the kernel's INIT has arrived."""
        super().__init__()
        self.core = core
        self.heartbeat = heartbeat
        self._on_ready = on_ready
        self._options = core.options
        self.enable_writeback_cache = core.options.writeback
        # With as_nobody: no named users of ACLs, and no file handles, which bypass directories.
        self.supports_dot_lookup = self.enable_acl = not core.options.as_nobody

    def init(self) -> None:
        """INIT."""
        self._on_ready()

    def _entry(self, node: Node, a: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.nodeid
        entry.generation = node.generation
        entry.entry_timeout = 0 if node.mount.is_pseudo else self._options.entry_timeout
        entry.attr_timeout = 0 if node.mount.is_pseudo else self._options.attr_timeout
        mode, major, minor = node.mount.allowed(a.mode, a.rdev_major, a.rdev_minor)
        entry.st_mode = mode
        entry.st_nlink = a.nlink
        entry.st_uid = a.uid
        entry.st_gid = a.gid
        entry.st_rdev = os.makedev(major, minor)
        entry.st_size = a.size
        entry.st_blksize = a.blksize
        entry.st_blocks = a.blocks
        entry.st_atime_ns = a.atime * NS + a.atime_ns
        entry.st_mtime_ns = a.mtime * NS + a.mtime_ns
        entry.st_ctime_ns = a.ctime * NS + a.ctime_ns
        return entry

    @_answered
    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """LOOKUP: the core's ``lookup``."""
        return self._entry(*self.core.lookup(parent, name, ctx.pid))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET, of several nodes at once."""
        for nodeid, count in inode_list:
            self.core.nodes.forget(nodeid, count)

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """GETATTR: the core's ``getattr``."""
        return self._entry(*self.core.getattr(inode))

    @_answered
    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        """SETATTR: the core's ``setattr``."""
        changes = Changes()
        if fields.update_mode:
            changes.mode = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            changes.uid = attr.st_uid
        if fields.update_gid:
            changes.gid = attr.st_gid
        if fields.update_size:
            changes.size = attr.st_size
        if fields.update_atime:
            changes.atime = divmod(attr.st_atime_ns, NS)
        if fields.update_mtime:
            changes.mtime = divmod(attr.st_mtime_ns, NS)
        return self._entry(*self.core.setattr(inode, changes, fh))

    @_answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """READLINK: the core's ``readlink``."""
        return self.core.readlink(inode)

    @_answered
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """MKNOD: the core's ``mknod``."""
        return self._entry(*self.core.mknod(parent, name, mode, rdev, _caller(ctx)))

    @_answered
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """MKDIR: the core's ``mkdir``."""
        return self._entry(*self.core.mkdir(parent, name, mode, _caller(ctx)))

    @_answered
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """UNLINK: the core's ``unlink``."""
        self.core.unlink(parent, name)

    @_answered
    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """RMDIR: the core's ``rmdir``."""
        self.core.rmdir(parent, name)

    @_answered
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """SYMLINK: the core's ``symlink``."""
        return self._entry(*self.core.symlink(parent, name, target, _caller(ctx)))

    @_answered
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: pyfuse3.RequestContext
    ) -> None:
        """RENAME: the core's ``rename``."""
        self.core.rename(parent, name, new_parent, new_name, flags, _caller(ctx))

    @_answered
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """LINK: the core's ``link``."""
        return self._entry(*self.core.link(inode, new_parent, new_name))

    def _is_direct(self, fh: int) -> bool:
        # With a size of 0 the kernel would see the end of a pseudo-filesystem's file.
        handle = self.core.files.handle(fh)
        return self._options.cache == "none" or handle.uncached or handle.node.mount.is_pseudo

    def _info(self, fh: int) -> pyfuse3.FileInfo:
        direct = self._is_direct(fh)
        return pyfuse3.FileInfo(fh=fh, keep_cache=self._options.keep_cache and not direct, direct_io=direct)

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """OPEN: the core's ``open``."""
        # libfuse leaves O_TRUNC to us: nobody else clears the set-id bits of a file that another user truncates.
        return self._info(self.core.open(inode, flags, _caller(ctx)))

    @_answered
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """CREATE: the core's ``create``."""
        node, attributes, fh = self.core.create(parent, name, flags, mode, _caller(ctx))
        return self._info(fh), self._entry(node, attributes)

    @_answered
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """READ: the core's ``read``."""
        with self.core.credentials.acting(self.core.files.rights.get(fh)):
            return self.core.files.read(fh, offset, size)

    @_answered
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """WRITE: the core's ``write``."""
        # pyfuse3 drops the flags of a WRITE, so O_APPEND at open counts. With the writeback cache the kernel places
        # appended data itself.
        direct = self._is_direct(fh)
        append = (direct or not self._options.writeback) and self.core.files.handle(fh).append
        # Without its cache the kernel leaves set-id bits to the server, and pyfuse3 does not say who writes. So no
        # writer may use reserved blocks or exceed a quota.
        files, credentials = self.core.files, self.core.credentials
        fd = files.writing_fd(files.handle(fh))
        rights = files.rights.get(fh)
        if rights is not None:
            with credentials.acting(rights):
                return files.write_made_up(fd, offset, data)
        with credentials.killpriv(fd, _ANYBODY) if direct else credentials.ordinary(keeps_setid=True):
            return files.write_at(fd, offset, data, append)

    @_answered
    async def flush(self, fh: int) -> None:
        """FLUSH: does nothing."""
        raise pyfuse3.FUSEError(errno.ENOSYS)  # nothing is buffered here; the kernel stops asking

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        """FSYNC: the core's ``fsync``."""
        self.core.files.fsync(fh, datasync)

    @_answered
    async def release(self, fh: int) -> None:
        """RELEASE: the core's ``release``."""
        self.core.files.release(fh)

    @_answered
    async def poll(self, inode: int, fh: int, handle: object, ctx: pyfuse3.RequestContext) -> int:
        """POLL: not supported; the kernel handles it."""
        raise pyfuse3.FUSEError(errno.ENOSYS)  # the kernel then assumes that files are always ready

    @_answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """OPENDIR: the core's ``opendir``."""
        return self.core.opendir(inode)

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIR: the core's ``entries``."""
        core = self.core
        handle = core.files.handle(fh)
        for entry in core.entries(core.files.directory(fh), start_id):
            if entry.name in (b".", b".."):
                # Of these two the kernel uses only number, type and name, so they are not looked up.
                dots = pyfuse3.EntryAttributes()
                dots.st_ino = core.nodes.mounts.shown_ino(handle.node.mount, entry.ino)
                dots.st_mode = stat.S_IFDIR
                if not pyfuse3.readdir_reply(token, entry.name, dots, entry.next_offset):
                    return
                continue
            try:
                node, attributes = core.look_at_entry(fh, entry.name)
            except (FileNotFoundError, PermissionError):
                continue  # removed since the directory was read; or listed but not accessible, as nobody
            except OSError:  # a mount whose server is gone, or our own: list the name, and an access reports the error
                unseen = pyfuse3.EntryAttributes()
                unseen.st_ino, unseen.st_mode = core.mounts.unused_id(), entry.kind << 12
                unseen.entry_timeout = unseen.attr_timeout = 0
                if not pyfuse3.readdir_reply(token, entry.name, unseen, entry.next_offset):
                    return
                continue
            if not pyfuse3.readdir_reply(token, entry.name, self._entry(node, attributes), entry.next_offset):
                core.nodes.forget(node.nodeid, 0)  # the kernel never got it, so it will not send FORGET
                return
            node.lookups += 1

    @_answered
    async def releasedir(self, fh: int) -> None:
        """RELEASEDIR: the core's ``release``."""
        self.core.files.release(fh)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """FSYNCDIR: the core's ``fsync``."""
        self.core.files.fsync(fh, datasync)

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """STATFS: the core's ``statfs``."""
        found = self.core.statfs(1)
        data = pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail",
                     "f_namemax"):  # fmt: skip
            setattr(data, name, getattr(found, name))
        return data

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """SETXATTR: the core's ``setxattr``."""
        self.core.xattrs.set(inode, name, value, 0, _caller(ctx))

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext | None = None) -> bytes:
        """GETXATTR: the core's ``getxattr``. pyfuse3 3.2.0 (Debian 11) also calls it for XATTR_CREATE, without ctx."""
        return self.core.xattrs.get(inode, name)

    @_answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        """LISTXATTR: the core's ``listxattr``."""
        return self.core.xattrs.names(inode, _caller(ctx))

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """REMOVEXATTR: the core's ``removexattr``."""
        self.core.xattrs.remove(inode, name)

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """ACCESS: the kernel checks itself (default_permissions)."""
        return True


def serve(
    fuse_fd: int, root_fd: int, options: Options, stop_fd: int, heartbeat: Heartbeat, on_ready: Callable[[], None]
) -> None:
    """Serve the mounted connection fuse_fd until it is unmounted or stop_fd is readable. Owns both fds."""
    core = (NobodyCore if options.as_nobody else Core)(root_fd, options)
    operations = Operations(core, heartbeat, on_ready)
    pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", {"default_permissions"})
    try:
        trio.run(_main, stop_fd)
    finally:
        pyfuse3.close(unmount=False)
        core.close()


async def _main(stop_fd: int) -> None:
    waits = getattr(trio, "lowlevel" if hasattr(trio, "lowlevel") else "hazmat")  # its name before trio 0.15
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await waits.wait_readable(stop_fd)
            pyfuse3.terminate()

        nursery.start_soon(stop)
        await pyfuse3.main(min_tasks=1, max_tasks=1)
        nursery.cancel_scope.cancel()
