"""Runs a command with the standard streams of stdio.py, without the rest of a session: python -m tests.nest.piped
{tools|foreign} CMD…
"""

from __future__ import annotations

import os
import select
import signal
import sys

from cntr.attach.signals import SignalFile
from cntr.attach.stdio import Stdio


def below(pid: str) -> list[str]:
    """PID and all its descendants."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as stream:
            return [pid, *(found for child in stream.read().split() for found in below(child))]
    except OSError:
        return []


def main() -> int:
    kind, *command = sys.argv[1:]
    watch = SignalFile()
    stdio = Stdio(-1, 0, foreign=kind == "foreign")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, fd in enumerate(stdio.given):
            if fd > 2:
                os.dup2(fd, number)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(command[0], command)
    stdio.hand_over()
    proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    stdio.watch(proc_fd, lambda: below(str(pid)))
    pidfd, ended = os.pidfd_open(pid), False
    while not ended:
        poll = select.poll()
        for fd, events in {pidfd: select.POLLIN, watch.fd: select.POLLIN, **stdio.interests()}.items():
            poll.register(fd, events)
        patience = stdio.patience()
        for fd, events in poll.poll(None if patience is None else patience * 1000):
            if fd == pidfd:
                ended = True
            elif fd == watch.fd:
                for number, _ in watch.read():
                    if number != signal.SIGCHLD:
                        signal.pidfd_send_signal(pidfd, number)
            else:
                assert stdio.ready(fd, events)
    status = os.waitpid(pid, 0)[1]
    if os.fork() == 0:  # a child's end, like that of a session's monitor while its output is drained
        os._exit(0)
    os.wait()
    stdio.drain(watch)
    stdio.close()
    stdio.check()
    return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main())
