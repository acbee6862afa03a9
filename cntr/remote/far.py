"""The remote end of ``cntr --host``: one process that supervises the command it has forked.

It passes signals on, and ends the command when the near side has died: sshd then closes the pipe that is this process's
stdout, or hangs up its terminal, and poll(2) reports that without a write.
"""

from __future__ import annotations

import _signal as signal
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 3.0  # between asking the command to end and killing it


def run(mark: str, command: Callable[[], int], rights: AbstractContextManager[None]) -> int:
    """Run COMMAND; return its exit status. MARK is the file that identifies this process; in the
    end it is removed with RIGHTS, its creator's.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in FORWARDED}
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
        return command()
    pidfd = os.pidfd_open(child)
    try:
        _wait(child, pidfd, reading)
        _, status = os.waitpid(child, 0)
    finally:
        try:
            with rights:
                os.unlink(mark)
        except OSError:
            pass
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _wait(child: int, pidfd: int, reading: int) -> None:
    """Wait until the child has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(reading, select.POLLIN)
    poll.register(1, 0)  # reports POLLERR and POLLHUP only
    left = -1.0
    while True:
        ready = dict(poll.poll(left * 1000 if left >= 0 else None))
        if pidfd in ready:
            return
        if 1 in ready:
            poll.unregister(1)
            signal.pidfd_send_signal(pidfd, signal.SIGHUP)
            left = GRACE_SECONDS
        elif not ready:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            left = -1.0
        if reading in ready:
            for number in os.read(reading, 64):
                if number in FORWARDED:
                    signal.pidfd_send_signal(pidfd, number)
