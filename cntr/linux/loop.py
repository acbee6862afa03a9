"""Loop devices: a part of a file as a block device (loop(4), linux/loop.h)."""

from __future__ import annotations

import fcntl
import os
import sys

CONTROL = "/dev/loop-control"
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A  # the second: Linux 5.8
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4
ATTEMPTS = 16  # another process may take the free one first
EBUSY = 16


def attach(file: int, offset: int, size: int) -> int:
    """A read-only loop device over SIZE bytes of FILE from OFFSET on: its fd. Raises OSError.

    The kernel detaches it when the last fd and mount of it is gone.
    """
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(ATTEMPTS):
            name = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, _config(file, offset, size))
                return device
            except OSError as error:
                os.close(device)
                if error.errno != EBUSY or attempt == ATTEMPTS - 1:
                    raise OSError(
                        error.errno, f"ioctl(LOOP_CONFIGURE): {os.strerror(error.errno or 0)}", name
                    ) from None
        raise AssertionError
    finally:
        os.close(control)


def _config(file: int, offset: int, size: int) -> bytes:
    """struct loop_config: fd, block_size, struct loop_info64, reserved."""
    numbers = [0, 0, 0, offset, size]
    info = b"".join(number.to_bytes(8, sys.byteorder) for number in numbers)
    info += bytes(12) + (LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR).to_bytes(4, sys.byteorder)
    info += bytes(64 + 64 + 32 + 16)
    return file.to_bytes(4, sys.byteorder) + bytes(4) + info + bytes(64)
