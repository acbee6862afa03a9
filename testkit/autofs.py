"""A tree with autofs mounts and its own daemon, which does what automount(8) does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.linux import syscalls

# linux/auto_fs.h
READY, FAIL = 0x9360, 0x9361
PACKET = struct.Struct("=iiIIQIIIII")  # version type token dev ino uid gid pid tgid len; then the name
DIRECT = 5  # autofs_ptype_missing_direct


@contextlib.contextmanager
def filled(made: Path) -> Iterator[Path]:
    """Make a tree: ``maps``, which autofs fills, with ``maps/shown`` known to be there; and
    ``direct``, which is a mount point itself.

    The daemon mounts in the mount namespace of the caller. Skips if the kernel has no autofs.
    """
    for name in ("maps", "direct"):
        (made / name).mkdir(parents=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            _daemon(made, writer)
        finally:
            os._exit(1)
    os.close(writer)
    said = os.read(reader, 100).decode()
    os.close(reader)
    try:
        if said != "ready":
            pytest.skip(f"autofs is missing: {said}")
        yield made
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for name in ("maps/shown", "maps/hidden", "maps/last", "direct", "maps"):
            with contextlib.suppress(OSError):  # EINVAL: nothing is mounted there any more
                while True:
                    syscalls.umount(str(made / name), syscalls.MNT_DETACH)


def _daemon(made: Path, told: int) -> None:
    """The daemon: the process group that autofs asks, and that sees what is below its mounts."""
    os.setpgid(0, 0)
    packets, pipe = os.pipe()
    try:
        for name, kind in (("maps", "indirect"), ("direct", "direct")):
            words = f"fd={pipe},pgrp={os.getpid()},minproto=5,maxproto=5,{kind}"
            syscalls.mount("autofs", str(made / name), "autofs", 0, words)
        roots = {kind: os.open(made / name, os.O_RDONLY) for kind, name in ((False, "maps"), (True, "direct"))}
    except OSError as error:
        os.write(told, (error.strerror or "it can't be mounted").encode())
        os._exit(0)
    for name in ("shown", "last"):
        (made / "maps" / name).mkdir()
    os.close(pipe)
    os.write(told, b"ready")
    os.close(told)
    while True:
        packet = os.read(packets, 4096)
        _, kind, token, *_, length = PACKET.unpack_from(packet)
        name = packet[PACKET.size : PACKET.size + length].decode()
        is_direct = kind == DIRECT
        point = made / "direct" if is_direct else made / "maps" / name
        if is_direct or name in ("shown", "hidden", "last"):
            point.mkdir(exist_ok=True)
            syscalls.mount("mounted", str(point), "tmpfs", 0)
            (point / "inside").touch()
        fcntl.ioctl(roots[is_direct], READY if is_direct or point.exists() else FAIL, token)
