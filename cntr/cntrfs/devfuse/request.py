"""What the handlers share: the connection's state, the present request's header, and answering."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

from cntr.cntrfs.backing import Caller
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.locks import Locks
from cntr.cntrfs.devfuse.passthrough import Passthrough
from cntr.cntrfs.devfuse.workers import Workers

if TYPE_CHECKING:
    from cntr.cntrfs.core import Core
    from cntr.cntrfs.heartbeat import Heartbeat
    from cntr.cntrfs.node import Node, Slot
    from cntr.kernel_fs import Attributes

log = logging.getLogger("cntr.cntrfs")

_pack_entry = wire.ENTRY_OUT.pack
_header = wire.OUT_HEADER.pack


class NoAnswer(Exception):
    """The request gets no answer, or gets it from another thread."""


class Connection:
    """The connection: what was agreed in INIT, the header of the request at hand, and its answer."""

    def __init__(self, fuse_fd: int, core: Core, heartbeat: Heartbeat) -> None:
        """fuse_fd: where answers are written."""
        self.fd = fuse_fd
        self.core = core
        self.flags = 0
        self.minor = wire.MINOR_VERSION
        self.unique = 0
        self.uid = 0
        self.gid = 0
        self.pid = 0
        self.extensions = 0  # in 8 bytes
        options = core.options
        self.entry_timeout = wire.timeout(options.entry_timeout)
        self.attr_timeout = wire.timeout(options.attr_timeout)
        self.keep_cache = options.keep_cache
        self.cache_directories = options.cache == "auto"
        self.direct_io = options.cache == "none"
        self.passthrough = Passthrough(fuse_fd, core)
        self.workers = Workers(self, heartbeat)
        self.locks = Locks(self)

    def close(self) -> None:
        """Give up what is held for the kernel."""
        self.locks.close()
        self.passthrough.close()

    # answering

    def answer(self, unique: int, payload: bytes | None) -> None:
        """Success, with PAYLOAD."""
        data = _header(16 + len(payload), 0, unique) + payload if payload else _header(16, 0, unique)
        self._write(data)

    def fail(self, unique: int, number: int) -> None:
        """Failure, with an errno."""
        self._write(_header(16, -number, unique))

    def _write(self, data: bytes) -> None:
        try:
            os.write(self.fd, data)
        except OSError as error:
            # ENOENT: the request was interrupted, nobody waits. ENODEV and the like: the next read finds out.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                log.error("the kernel refused an answer of %d bytes: %s", len(data), error)
                if error.errno == errno.EINVAL and len(data) > 16:  # the client must not wait for ever
                    unique = wire.OUT_HEADER.unpack_from(data)[2]
                    os.write(self.fd, _header(16, -errno.EIO, unique))

    # pieces of answers

    def caller(self, umask: int = 0) -> Caller:
        """Who made the request at hand."""
        return Caller(self.uid, self.gid, self.pid, umask)

    def timeouts(self, slot: Slot, nodeid: int = 0) -> tuple[int, int, int, int]:
        """(entry seconds, attribute seconds, entry ns, attribute ns) for a file of this slot."""
        if slot.watched and nodeid < _SYNTHETIC:  # the watch knows inode numbers
            return _LONG, (_LONG if nodeid not in self.passthrough.mapped else 0), 0, 0
        if slot.is_pseudo:
            return 0, 0, 0, 0
        (entry, entry_ns), (attr, attr_ns) = self.entry_timeout, self.attr_timeout
        if nodeid in self.passthrough.mapped:
            attr = attr_ns = 0
        return entry, attr, entry_ns, attr_ns

    def attributes(self, node: Node, a: Attributes) -> tuple[int, ...]:
        """The fields of struct fuse_attr."""
        slot = node.slot
        return (
            slot.base | a.ino if slot.base and a.ino < 1 << 48 else a.ino, a.size, a.blocks, a.atime & _U64,
            a.mtime & _U64, a.ctime & _U64, a.atime_ns, a.mtime_ns, a.ctime_ns, a.mode, a.nlink, a.uid, a.gid,
            wire.new_encode_dev(a.rdev_major, a.rdev_minor) if a.rdev_major or a.rdev_minor else 0, a.blksize, 0,
        )  # fmt: skip

    def entry(self, node: Node, a: Attributes) -> bytes:
        """struct fuse_entry_out."""
        return _pack_entry(
            node.nodeid, node.generation, *self.timeouts(node.slot, node.nodeid), *self.attributes(node, a)
        )

    def attr(self, node: Node, a: Attributes) -> bytes:
        """struct fuse_attr_out."""
        _, seconds, _, nanoseconds = self.timeouts(node.slot, node.nodeid)
        return wire.ATTR_OUT.pack(seconds, nanoseconds, 0, *self.attributes(node, a))


_SYNTHETIC = 1 << 63
_LONG = 86400  # seconds: changes behind the mount are told to the kernel
_U64 = (1 << 64) - 1
