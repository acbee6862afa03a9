"""Run a command with other /etc and /run: ``place.py RUN SETUP -- COMMAND…`` in a mount namespace of its own (unshare
-m).

/etc is the machine's under an overlay that ends with the namespace; /run is the directory RUN. SETUP, a shell script,
runs first.
"""

from __future__ import annotations

import os
import subprocess
import sys

from cntr.linux import syscalls


def main() -> None:
    """Never returns."""
    run, setup, dashes, *command = sys.argv[1:]
    assert dashes == "--"
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(run, "/run", None, syscalls.MS_BIND)
    syscalls.mount("layer", "/mnt", "tmpfs", 0)
    for name in ("/mnt/upper", "/mnt/work"):
        os.mkdir(name, 0o755)
    syscalls.mount("etc", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work")
    subprocess.run(["sh", "-euc", setup], check=True)
    syscalls.umount("/mnt", syscalls.MNT_DETACH)
    os.execvp(command[0], command)


main()
