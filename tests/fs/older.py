"""CntrFS on this kernel, limited to what an older one offers: python -m tests.fs.older KERNEL
SOURCE MOUNTPOINT …

Only the negotiation in INIT is the older kernel's; requests that it did not have are still made.
"""

from __future__ import annotations

import sys
from typing import Any

from cntr.cntrfs.__main__ import main as serve
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.session import FuseSession

#: kernel: its minor version of the protocol, and how many of the flags of INIT it knows (linux/fuse.h)
OFFERED = {"5.10": (32, 28), "6.1": (37, 34)}


def _offer(kernel: str) -> None:
    newest, flags = OFFERED[kernel]
    ours = FuseSession.init

    def init(self: Any, body: memoryview) -> bytes:
        major, _, readahead, first = wire.INIT_IN.unpack_from(body)
        known = (first | int.from_bytes(body[16:20], sys.byteorder) << 32) & ((1 << flags) - 1)
        asked = wire.INIT_IN.pack(major, newest, readahead, known & 0xFFFFFFFF)
        return ours(self, memoryview(asked + (known >> 32).to_bytes(4, sys.byteorder) + bytes(len(body) - 20)))

    FuseSession.init = init  # type: ignore[method-assign]


if __name__ == "__main__":
    _offer(sys.argv[1])
    sys.exit(serve(sys.argv[2:]))
