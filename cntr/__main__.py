"""``python -m cntr`` and the console script."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import gc
import os
import sys


def main() -> None:
    """Run the command line and exit with its status; never returns."""
    gc.set_threshold(20_000)  # what is imported stays: the garbage collector need not look at it (0.5 ms)
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # otherwise the next file opened would become some process's stdin
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if SIGCHLD were inherited as ignored, child statuses would be lost
    from cntr.cli.main import run

    status = run(sys.argv[1:])
    os._exit(status)  # all is flushed and closed: interpreter teardown would cost 1-2 ms and change nothing


if __name__ == "__main__":
    main()
