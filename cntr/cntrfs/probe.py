"""Tests which parts of CntrFS work on this machine, for ``cntr doctor``. Each probe raises OSError or CntrError."""

from __future__ import annotations

import errno
import os
import select
import sys

from cntr.cntrfs import mounting
from cntr.cntrfs.devfuse import rings, wire
from cntr.cntrfs.options import connection_options
from cntr.linux import file_syscalls, procfs, syscalls

_BUFFER = 1 << 17  # bytes; the kernel requires at least 8 KiB
_ANSWER_SECONDS = 2.0
ENABLE_URING = "/sys/module/fuse/parameters/enable_uring"


def device() -> None:
    """Open a connection."""
    os.close(mounting.open_device())


def pyfuse3() -> None:
    """Load the library."""
    mounting.choose_binding("pyfuse3")


def passthrough() -> None:
    """Register a backing file, on a connection of our own whose mount is in no namespace and ends here."""
    fuse_fd = mounting.open_device()
    mount_fd = backing_fd = -1
    try:
        mount_fd = _mounted(fuse_fd)
        if not _agree(fuse_fd, wire.PASSTHROUGH) & wire.PASSTHROUGH:
            raise OSError(errno.EOPNOTSUPP, "not offered by this kernel")
        backing_fd = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
        number = file_syscalls.ioctl_number(fuse_fd, wire.DEV_IOC_BACKING_OPEN, wire.BACKING_MAP.pack(backing_fd, 0, 0))
        file_syscalls.ioctl_number(fuse_fd, wire.DEV_IOC_BACKING_CLOSE, number.to_bytes(4, sys.byteorder))
    finally:
        for fd in (
            fuse_fd,
            mount_fd,
            backing_fd,
        ):  # the connection first: closing the mount of a live one waits for answers
            if fd >= 0:
                os.close(fd)


def io_uring() -> str:
    """Receive requests by io_uring, ``-o io_uring``; return how many queues that takes."""
    fuse_fd = mounting.open_device()
    mount_fd = -1
    try:
        mount_fd = _mounted(fuse_fd)
        if not _agree(fuse_fd, 0) & wire.OVER_IO_URING:
            raise OSError(errno.EOPNOTSUPP, _why_not_offered())
    finally:
        os.close(fuse_fd)
        if mount_fd >= 0:
            os.close(mount_fd)
    if why := rings.why_not():
        raise OSError(errno.EOPNOTSUPP, why)
    try:
        rings.try_ring()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (kernel.io_uring_disabled, or a seccomp filter)") from None
    return f"for mounts with -o io_uring; {rings.possible_processors()} queues"


def _why_not_offered() -> str:
    """The kernel's INIT does not offer io_uring: tell whether it is switched off or not built in."""
    try:
        value = procfs.read(ENABLE_URING).strip()
    except OSError:
        return "this kernel has it not"
    return "switched off" if value == "N" else "not offered by this kernel"


def _mounted(fuse_fd: int) -> int:
    """The fd of a mount, in no namespace, of the connection fuse_fd."""
    return syscalls.new_filesystem("fuse", {"source": "cntr-doctor", **connection_options(fuse_fd)})


def _agree(fuse_fd: int, wanted: int) -> int:
    """Answer the kernel's INIT with WANTED only; return the flags it offered. Raises OSError."""
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
    agreed = flags & (wire.INIT_EXT | wanted)
    answer = wire.INIT_OUT.pack(
        *(wire.KERNEL_VERSION, wire.MINOR_VERSION, 0, agreed & 0xFFFFFFFF, 1, 1, 4096, 1, 1, 0, agreed >> 32, 1, 0)
    )
    os.write(fuse_fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(answer), 0, unique) + answer)
    return int(flags)
