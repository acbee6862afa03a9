"""What of CntrFS works on this machine, found out by trying: for ``cntr doctor``. Each probe raises OSError or CntrError."""

from __future__ import annotations

import errno
import os
import select
import sys

from cntr.cntrfs import mounting
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.options import connection_options
from cntr.linux import file_syscalls, syscalls

_BUFFER = 1 << 17  # bytes; the kernel hands out no request to less than 8 KiB
_ANSWER_SECONDS = 2.0


def device() -> None:
    """A connection can be opened."""
    os.close(mounting.open_device())


def pyfuse3() -> None:
    """The library can be loaded."""
    mounting.choose_binding("pyfuse3")


def passthrough() -> None:
    """The kernel takes a backing file: on a connection of our own, whose mount is in no namespace and ends here."""
    fuse_fd = mounting.open_device()
    mount_fd = backing_fd = -1
    try:
        options = {"source": "cntr-doctor", **connection_options(fuse_fd)}
        mount_fd = syscalls.new_filesystem("fuse", options)
        _agree(fuse_fd)
        backing_fd = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
        number = file_syscalls.ioctl_number(fuse_fd, wire.DEV_IOC_BACKING_OPEN, wire.BACKING_MAP.pack(backing_fd, 0, 0))
        file_syscalls.ioctl_number(fuse_fd, wire.DEV_IOC_BACKING_CLOSE, number.to_bytes(4, sys.byteorder))
    finally:
        for fd in (
            fuse_fd,
            mount_fd,
            backing_fd,
        ):  # the connection first: closing a mount of a live one waits for answers
            if fd >= 0:
                os.close(fd)


def _agree(fuse_fd: int) -> None:
    """Answer the kernel's INIT, agreeing on passthrough and nothing else. Raises OSError where it is not offered."""
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    if not poll.poll(_ANSWER_SECONDS * 1000):
        raise OSError(errno.ETIMEDOUT, "the kernel sends no INIT")
    request = os.read(fuse_fd, _BUFFER)
    unique = wire.IN_HEADER.unpack_from(request)[2]
    body = request[wire.IN_HEADER.size :]
    flags = wire.INIT_IN.unpack_from(body)[3]
    if flags & wire.INIT_EXT and len(body) >= 20:
        flags |= int.from_bytes(body[16:20], sys.byteorder) << 32
    if not flags & wire.PASSTHROUGH:
        raise OSError(errno.EOPNOTSUPP, "not offered by this kernel")
    agreed = wire.INIT_EXT | wire.PASSTHROUGH
    answer = wire.INIT_OUT.pack(
        *(wire.KERNEL_VERSION, wire.MINOR_VERSION, 0, agreed & 0xFFFFFFFF, 1, 1, 4096, 1, 1, 0, agreed >> 32, 1, 0)
    )
    os.write(fuse_fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(answer), 0, unique) + answer)
