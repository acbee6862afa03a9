"""Who makes a request: a pid of the mounter's pid namespace, which must be the same process in the server's /proc."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cntr.cntrfs.backing import Caller
from cntr.cntrfs.devfuse import wire
from testkit.servers import REPOSITORY

from .test_wire import standing_in


@pytest.mark.skipif(os.geteuid() != 0, reason="the server runs as root")
def test_nothing_is_believed_of_an_unknown_pid(tmp_path: Path) -> None:
    """Pid 0: the caller is outside the mounter's pid namespace, and could be the root of any user namespace."""
    with standing_in(tmp_path) as kernel:
        os.setxattr(tmp_path / "file", "trusted.a", b"x")
        nodeid = kernel.lookup(b"file")
        fh = wire.OPEN_OUT.unpack(kernel.call(wire.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDWR, 0)))[0]
        reserve = wire.FALLOCATE_IN.pack(fh, 0, 100, 0, 0)
        for known in (True, False):
            (tmp_path / "file").chmod(0o4755)
            for opcode, body in ((wire.LISTXATTR, wire.GETXATTR_IN.pack(4096, 0)), (wire.FALLOCATE, reserve)):
                request = bytearray(kernel.request(opcode, nodeid, body))
                if not known:
                    request[32:36] = bytes(4)
                kernel.send(bytes(request))
                ((number, _, payload),) = kernel.answers()
                assert number == 0
                assert opcode != wire.LISTXATTR or (b"trusted.a" in payload) == known
            assert bool((tmp_path / "file").stat().st_mode & stat.S_ISUID) == known


def test_another_pid_namespaces_proc_is_not_looked_into() -> None:
    """The server is in a pid namespace of its own with the host's /proc, in which pid 1 is another process."""
    script = "from cntr.cntrfs.backing import Caller, proc_shows_our_pids; print(proc_shows_our_pids())"
    plain = [sys.executable, "-c", script]
    cases = (
        (plain, "True"),
        (["unshare", "-pf", *plain], "False"),
        (["unshare", "-pf", "--mount-proc", *plain], "True"),
    )
    for command, wanted in cases:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        assert done.stdout.strip() == wanted, command


def test_a_strangers_groups_are_not_the_callers() -> None:
    """Another process may have the pid by now: its fsuid must at least be the request's."""
    assert Caller(os.getuid() + 7, 0, os.getpid()).groups() == ()
    assert not Caller(os.getuid() + 7, 0, os.getpid()).is_capable(21)
    assert Caller(0, 0, os.getpid()).is_capable(21)
