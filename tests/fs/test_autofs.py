"""autofs below SOURCE: it mounts when somebody walks in, through CntrFS as by its own path, and not for a listing."""

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
from testkit.servers import served

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: mounting needs it")
# linux/auto_fs.h
READY, FAIL = 0x9360, 0x9361
PACKET = struct.Struct("=iiIIQIIIII")  # version type token dev ino uid gid pid tgid len; then the name
DIRECT = 5  # autofs_ptype_missing_direct


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A tree with ``maps``, which autofs fills, ``maps/shown`` known to be there, and ``direct``, a mount point by itself."""
    made = tmp_path / "source"
    for name in ("source/maps", "source/direct", "mount"):
        (tmp_path / name).mkdir(parents=True)
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
        for name in ("maps/shown", "maps/hidden", "maps/last", "direct", "direct", "maps"):
            with contextlib.suppress(OSError):
                syscalls.umount(str(made / name), syscalls.MNT_DETACH)


def _daemon(made: Path, told: int) -> None:
    """What automount(8) is: the process group that autofs asks, and that sees what is below its mounts."""
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


def _mounted(here: Path) -> list[str]:
    with open("/proc/self/mountinfo") as lines:
        return sorted(
            str(Path(line.split()[4]).relative_to(here))
            for line in lines
            if line.split()[4].startswith(f"{here}/") and " - tmpfs " in line
        )


@pytest.mark.parametrize("binding", ["plain", "devfuse", "pyfuse3"])
def test_what_is_walked_into_is_mounted(binding: str, source: Path, tmp_path: Path) -> None:
    with contextlib.nullcontext(source) if binding == "plain" else served(binding, tmp_path) as here:
        assert {entry.name: entry.is_dir() for entry in os.scandir(here / "maps")} == {"shown": True, "last": True}
        os.stat(here / "maps" / "shown"), os.stat(here / "direct")
        assert _mounted(source) == [], "looking at a name mounts nothing"
        assert os.listdir(here / "maps" / "hidden") == ["inside"]
        assert os.listdir(here / "maps" / "shown") == ["inside"]
        assert (here / "maps" / "last" / "inside").stat().st_size == 0
        assert (here / "direct" / "inside").stat().st_size == 0
        with pytest.raises(FileNotFoundError):
            os.listdir(here / "maps" / "unknown")
        assert _mounted(source) == ["direct", "maps/hidden", "maps/last", "maps/shown"]
