"""The session is in every cgroup of the container; in the cgroup2 one from its first instruction on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cntr.attach import cgroup
from cntr.linux import procfs, syscalls
from testkit.engines import rigs

CGROUP2 = next(
    (
        m.mount_point
        for m in procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
        if m.fstype == "cgroup2" and "rw" in m.options
    ),
    "",
)


@pytest.mark.parametrize("name", ["docker", "runc"])
def test_the_session_is_in_the_containers_cgroups(request, name):
    with rigs.open_rig(request, name).container() as container:
        theirs = procfs.cgroups(procfs.read(f"/proc/{container.pid}/cgroup"))
        # Outside the cgroup namespace paths are complete, so the supervisor's parent (this process) reads them.
        session = subprocess.Popen(
            [sys.executable, "-m", "cntr", "attach", container.target, "--", "sh", "-c", "echo; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=container.env,
        )
        assert session.stdin
        assert session.stdout
        with session.stdin, session.stdout:
            session.stdout.readline()
            shells = [pid for pid in _below(session.pid) if procfs.read(f"/proc/{pid}/comm").strip() in ("sh", "cat")]
            assert shells
            for pid in shells:
                assert procfs.cgroups(procfs.read(f"/proc/{pid}/cgroup")) == theirs
        assert session.wait(timeout=20) == 0


def _below(pid: int) -> list[int]:
    children = [int(word) for word in procfs.read(f"/proc/{pid}/task/{pid}/children").split()]
    return children + [found for child in children for found in _below(child)]


@pytest.mark.skipif(not CGROUP2, reason="no writable cgroup2 mount here")
def test_a_fork_into_a_cgroup_begins_there_and_python_goes_on():
    directory = f"{CGROUP2}/cntr-test-{os.getpid()}"
    os.mkdir(directory)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        program = (
            "import os, sys; from cntr.linux import syscalls\n"
            f"pid = syscalls.fork({fd})\n"
            "if pid == 0:\n"
            "    import json  # the import lock works in the child\n"
            "    print(open('/proc/self/cgroup').read()); sys.stdout.flush(); os._exit(os.getpid() != int(os.readlink('/proc/self')))\n"
            "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
        )
        shown = subprocess.run(
            [sys.executable, "-c", program], pass_fds=(fd,), capture_output=True, text=True, check=True
        )
        os.close(fd)
        assert procfs.cgroups(shown.stdout)[""].endswith(f"/cntr-test-{os.getpid()}")
    finally:
        os.rmdir(directory)


def test_a_refused_fork_into_a_cgroup_is_an_error_that_names_the_call():
    fd = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="clone3"):
            syscalls.fork(fd)
    finally:
        os.close(fd)


def test_a_cgroup_made_for_a_session_goes_where_it_can_not_begin(tmp_path):
    (tmp_path / "own").mkdir()
    parent_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(FileNotFoundError):
        cgroup.CgroupJoin([cgroup.Membership("", str(tmp_path / "none"))], (parent_fd, "own"))
    assert not (tmp_path / "own").exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(parent_fd)
