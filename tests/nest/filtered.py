"""``python -m tests.nest.filtered COMMAND…``: run it where the kernel has no mount_setattr(2), as before Linux 5.12: by seccomp(2)."""

from __future__ import annotations

import errno
import os
import sys

from cntr.linux import seccomp, syscalls
from tests.nest.filters import ALLOW, instruction

if __name__ == "__main__":
    program = [
        instruction(0x20, 0),
        instruction(0x15, syscalls._SYS_MOUNT_SETATTR, 0, 1),
        instruction(0x06, 0x50000 | errno.ENOSYS),
    ]
    seccomp.install(b"".join([*program, instruction(0x06, ALLOW)]))
    os.execvp(sys.argv[1], sys.argv[1:])
