"""close_range(2) where the kernel, or a filter from before the call, does not have it."""

from __future__ import annotations

import _ctypes
import errno
import fcntl
import os

import pytest

from cntr.linux import syscalls


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
@pytest.mark.parametrize("flags", [0, syscalls.CLOSE_RANGE_CLOEXEC])
def test_it_is_done_one_by_one(monkeypatch, number, flags):
    def refused(*_: object) -> int:
        _ctypes.set_errno(number)
        return -1

    base = fcntl.fcntl(0, fcntl.F_DUPFD, 700)  # three in a row, where nobody else has one
    fds = [base, base + 1, base + 2]
    for fd in fds[1:]:
        os.dup2(base, fd)
    for fd in fds:
        os.set_inheritable(fd, True)
    monkeypatch.setattr(syscalls, "_syscall", refused)
    first, last = fds[0], fds[1]
    assert last == first + 1
    syscalls.close_range(first, flags, last)
    for fd in fds[:2]:
        if flags:
            assert not os.get_inheritable(fd)
            os.close(fd)
        else:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    assert os.get_inheritable(fds[2])
    os.close(fds[2])


def test_any_other_error_is_one(monkeypatch):
    def refused(*_: object) -> int:
        _ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(syscalls, "_syscall", refused)
    with pytest.raises(OSError, match="close_range"):
        syscalls.close_range(1000, 0)
