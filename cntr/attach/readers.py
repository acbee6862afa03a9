"""Whether a process waits to read a pipe, judged by the system call it sleeps in (/proc/PID/syscall, proc(5)).

Input read from the caller for a command cannot be put back. `cat list | while read x; do cntr exec web -- …; done`
must not lose its list to a command that does not read it, nor may `cntr exec web -- cat log | less` take the keys
meant for less.
"""

from __future__ import annotations

import os

from cntr.linux import patience, procfs
from cntr.linux.numbers import UNAME

# Where a call has its fds: the first argument, or the sets of poll(2), select(2), epoll_wait(2) and io_uring.
_FD, _POLL, _SELECT, _EPOLL, _URING = range(5)
_CALLS = {
    # read readv preadv2 splice tee recvfrom; then their i386 numbers, which on x86_64 mean calls that never sleep
    "x86_64": {
        **dict.fromkeys((0, 19, 327, 275, 276, 45, 3, 145), _FD),
        **dict.fromkeys((7, 271, 168, 309, 414), _POLL),
        **dict.fromkeys((23, 270, 142, 308, 413), _SELECT),
        **dict.fromkeys((232, 281, 441, 256, 319), _EPOLL),
        426: _URING,
    },
    "": {
        **dict.fromkeys((63, 65, 286, 76, 77), _FD),
        73: _POLL,
        72: _SELECT,
        **dict.fromkeys((22, 441), _EPOLL),
        426: _URING,
    },
}
CALLS = _CALLS.get(UNAME, _CALLS[""])
FDS = 4096  # how many fds of one poll(2) or select(2) are checked
MEMORY_SECONDS = 0.2  # a page may belong to a file that never answers

_silent: set[str] = set()  # pids whose memory did not answer


def wanted(proc_fd: int, pids: list[str], link: str) -> bool:
    """Whether one of PIDS sleeps until it can read the pipe shown as LINK in /proc/PID/fd; True if the kernel does
    not tell.
    """
    for pid in pids:
        try:
            if any(_waits(proc_fd, f"{pid}/task/{tid}", link) for tid in _names(proc_fd, f"{pid}/task")):
                return True
        except PermissionError:
            return True
        except TimeoutError:
            _silent.add(pid)
            return True
        except OSError:
            continue  # it has ended
    return False


def _names(dir_fd: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _waits(proc_fd: int, thread: str, link: str) -> bool:
    words = procfs.read(f"{thread}/syscall", proc_fd).split()
    if len(words) < 7:  # "running", or not in a system call
        return False
    kind = CALLS.get(int(words[0]))
    first, second = int(words[1], 16), int(words[2], 16)
    if kind is None:
        return False
    if kind in (_POLL, _SELECT) and thread.partition("/")[0] in _silent:
        return True
    if kind == _FD:
        fds = {first}
    elif kind == _POLL:  # struct pollfd: int fd, short events, short revents
        data = _memory(proc_fd, thread, first, min(second, FDS) * 8)
        fds = {int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 8)}
    elif kind == _SELECT:
        bits = int.from_bytes(_memory(proc_fd, thread, second, min(first, FDS) // 8 + 1), "little")
        fds = {fd for fd in range(min(first, FDS)) if bits >> fd & 1}
    elif kind == _EPOLL:
        rows = (line.split() for line in procfs.read(f"{thread}/fdinfo/{first}", proc_fd).splitlines())
        fds = {int(row[1]) for row in rows if row[:1] == ["tfd:"]}
    else:  # what a ring waits for is not visible
        fds = {int(name) for name in _names(proc_fd, f"{thread}/fd")}
    return any(_is(proc_fd, f"{thread}/fd/{fd}", link) for fd in fds)


def _is(proc_fd: int, path: str, link: str) -> bool:
    try:
        return os.readlink(path, dir_fd=proc_fd) == link
    except FileNotFoundError:
        return False


def _memory(proc_fd: int, thread: str, address: int, size: int) -> bytes:
    if not address or not size:
        return b""
    fd = os.open(f"{thread}/mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        return patience.bounded(lambda: os.pread(fd, size, address), MEMORY_SECONDS)
    finally:
        os.close(fd)
