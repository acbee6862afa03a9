"""``python -m tests.nest.filtered KERNEL COMMAND…``: runs a command with the system calls of an older kernel, by
seccomp(2).

5.10: no calls from epoll_pwait2(2) on, such as mount_setattr(2), and no CLOSE_RANGE_CLOEXEC; 5.6: also no
close_range(2) and faccessat2(2).
"""

from __future__ import annotations

import errno
import os
import sys

from cntr.linux import seccomp, syscalls
from tests.nest.filters import ALLOW, instruction

LOAD, EQUAL, AT_LEAST, HAS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
FIRST_MISSING = {"5.10": 441, "5.6": 439}  # linux/unistd.h, on every architecture
CLOSE_RANGE_CLOEXEC = 4  # linux/close_range.h
THIRD_ARGUMENT = 16 + 2 * 8  # struct seccomp_data; its lower half on a little-endian machine


def program(kernel: str) -> bytes:
    """The filter for a kernel without FIRST_MISSING and later calls."""
    missing = instruction(RETURN, 0x50000 | errno.ENOSYS)
    old_close_range = [instruction(LOAD, THIRD_ARGUMENT), instruction(HAS, CLOSE_RANGE_CLOEXEC, 0, 1)]
    old_close_range += [instruction(RETURN, 0x50000 | errno.EINVAL)]
    close_range = [missing] if kernel == "5.6" else old_close_range
    return b"".join(
        [
            instruction(LOAD, 0),
            instruction(AT_LEAST, FIRST_MISSING[kernel], 0, 1),
            missing,
            instruction(EQUAL, syscalls._SYS_CLOSE_RANGE, 0, len(close_range)),
            *close_range,
            instruction(RETURN, ALLOW),
        ]
    )


if __name__ == "__main__":
    seccomp.install(program(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
