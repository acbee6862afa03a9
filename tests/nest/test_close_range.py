"""close_range(2) on a kernel, or under a filter, without it; openat2(2) during renames."""

from __future__ import annotations

import _ctypes
import errno
import fcntl
import os
import subprocess
import sys

import pytest

from cntr.linux import syscalls


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_it_is_done_one_by_one(monkeypatch, number):
    def refused(*_: object) -> int:
        _ctypes.set_errno(number)
        return -1

    base = fcntl.fcntl(0, fcntl.F_DUPFD, 700)  # three consecutive numbers that are not in use
    fds = [base, base + 1, base + 2]
    for fd in fds[1:]:
        os.dup2(base, fd)
    for fd in fds:
        os.set_inheritable(fd, True)
    monkeypatch.setattr(syscalls, "_syscall", refused)
    first, last = fds[0], fds[1]
    assert last == first + 1
    syscalls.close_range(first, last)
    for fd in fds[:2]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.fstat(fds[2])
    os.close(fds[2])


def test_any_other_error_is_one(monkeypatch):
    def refused(*_: object) -> int:
        _ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(syscalls, "_syscall", refused)
    with pytest.raises(OSError, match="close_range"):
        syscalls.close_range(1000)


def test_a_rename_elsewhere_does_not_stop_a_path_with_dots(tmp_path):
    """openat2(2) fails with EAGAIN if anything is renamed while it follows a ``..``, and any user may rename all the
    time.
    """
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    script = "import os\nwhile True: os.rename('x', 'y'); os.rename('y', 'x')"
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as renaming:
        root = os.open(tmp_path, os.O_PATH)
        try:
            for _ in range(20_000):
                os.close(syscalls.openat2(root, "a/../a/../a/b", os.O_PATH, syscalls.RESOLVE_IN_ROOT))
        finally:
            os.close(root)
            renaming.kill()
