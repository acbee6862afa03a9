"""Notifications: messages from the server to the kernel that are not answers.

Invalidating an entry takes the lock of its directory, which a client may hold while it waits for the server: never do
it in the serving thread. Invalidating the attributes of an inode that a client has open takes no such lock.
"""

from __future__ import annotations

import errno
import os

from cntr.cntrfs.devfuse import wire


def notify(fuse_fd: int, code: int, payload: bytes) -> bool:
    """Write one notification; return whether the kernel knows its code. It is no error if nothing was cached."""
    try:
        os.write(fuse_fd, wire.OUT_HEADER.pack(16 + len(payload), code, 0) + payload)
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return True
