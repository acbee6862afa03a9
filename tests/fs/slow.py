"""CntrFS over a slow disk, as the backing of another one: python -m tests.fs.slow SOURCE MOUNTPOINT
…

Copies and writes move BYTES_PER_SECOND, fsync(2) and closing an executable file take SYNC_SECONDS,
and a lookup of a name that begins with "sleepy" takes LOOKUP_SECONDS. Everything else has its
normal speed.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from cntr.cntrfs.__main__ import main as serve
from cntr.cntrfs.core import Core
from cntr.cntrfs.devfuse.request import Connection

BYTES_PER_SECOND = 16 << 20
SYNC_SECONDS = 2.0
LOOKUP_SECONDS = 4.0


def _after(name: str, seconds: Any) -> None:
    """Make os.NAME wait first."""
    original = getattr(os, name)

    def slowly(*args: Any) -> Any:
        time.sleep(seconds(*args))
        return original(*args)

    setattr(os, name, slowly)


def slow_down() -> None:
    _after("copy_file_range", lambda source, target, size, *offsets: size / BYTES_PER_SECOND)
    _after("pwrite", lambda fd, data, offset: len(data) / BYTES_PER_SECOND)
    _after("fsync", lambda fd: SYNC_SECONDS)
    _after("fdatasync", lambda fd: SYNC_SECONDS)
    lookup_entry = Core.lookup_entry

    def sleepily(self: Core, parent_id: int, name: bytes) -> Any:
        if name.startswith(b"sleepy"):
            time.sleep(LOOKUP_SECONDS)
        return lookup_entry(self, parent_id, name)

    def flushing(self: Connection, handle: Any, fh: int) -> None:
        if os.fstat(handle.fd).st_mode & 0o100:
            time.sleep(SYNC_SECONDS)

    Core.lookup_entry = sleepily
    Connection.let_go = flushing


if __name__ == "__main__":
    slow_down()
    sys.exit(serve(sys.argv[1:]))
