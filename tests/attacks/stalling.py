"""A container's FUSE server that reads every request and answers only the first ones: a process that waits for it gets
no signal.
"""

from __future__ import annotations

import os
import signal
import stat
import struct

from cntr.linux import syscalls

LOOKUP, GETATTR, OPEN, READ, STATFS, INIT, OPENDIR = 1, 3, 14, 15, 17, 26, 27  # linux/fuse.h
ALL = frozenset((LOOKUP, GETATTR, OPEN, READ, STATFS, OPENDIR))
_SIZE = 1 << 20


def born() -> int:
    """Fork a child without the test's open files that ends with its parent."""
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        kept = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        for fd in kept:
            if fd > 2 and not os.readlink(f"/proc/self/fd/{fd}").endswith("/fuse"):
                os.close(fd)
    return pid


def mount(where: str, silent_about: frozenset[int], owner: int = 0) -> None:
    """In a process of the container that may mount: a directory of OWNER's at WHERE in which each name is a file, and its server."""
    os.makedirs(where, exist_ok=True)
    os.path.exists("/dev/fuse") or os.mknod("/dev/fuse", stat.S_IFCHR | 0o600, os.makedev(10, 229))
    fd = os.open("/dev/fuse", os.O_RDWR)
    syscalls.mount("fuse.x", where, "fuse.x", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other")
    if born() == 0:
        try:
            _serve(fd, silent_about, owner)
        finally:
            os._exit(0)
    os.close(fd)


def _attributes(node: int, owner: int) -> bytes:
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("<6Q10I", node, _SIZE, 8, 0, 0, 0, 0, 0, 0, mode, 1, owner, owner, 0, 4096, 0)


def _serve(fd: int, silent_about: frozenset[int], owner: int) -> None:
    while True:
        request = os.read(fd, 1 << 18)
        _, operation, unique, node = struct.unpack("<IIQQ", request[:24])
        answers = {
            INIT: struct.pack("<4I2H2I2HI28x", 7, 31, 1 << 17, 0, 12, 10, 1 << 17, 1, 32, 0, 0),
            LOOKUP: struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + _attributes(2, owner),
            GETATTR: struct.pack("<Q2I", 0, 0, 0) + _attributes(node, owner),
            OPEN: struct.pack("<Q2I", 1, 0, 0),
            OPENDIR: struct.pack("<Q2I", 1, 0, 0),
        }
        if operation in silent_about:
            continue
        answer = answers.get(operation, b"")
        os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0 if answer else -38, unique) + answer)
