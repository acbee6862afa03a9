"""``python -m testkit.engines.otherroot ROOT [--hide DIR] [--bind FILE:PLACE]… -- CMD…``: runs CMD with ROOT as its
root.

For engines that only a newer Debian has: their programs are in a cached root made by mmdebstrap, and run in this
machine's pid namespace, with its /proc, /sys, /dev and /tmp. Uses pivot_root, because the kernel refuses new user
namespaces to a process in a chroot (user_namespaces(7)).
"""

from __future__ import annotations

import argparse
import os

from cntr.linux import syscalls
from testkit.container import enter_root

MS_BIND, MS_REC = syscalls.MS_BIND, syscalls.MS_REC


def main() -> None:
    """Assemble the view and exec."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--hide", action="append", default=[])
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("--uid", type=int, default=0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    root = options.root
    directories = os.get_exec_path()  # early: it imports modules that the other root lacks
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, MS_REC | syscalls.MS_PRIVATE)
    for directory in options.hide:
        syscalls.umount(directory)
    syscalls.mount(root, root, None, MS_BIND)
    for directory in ("proc", "sys", "dev", "tmp"):
        syscalls.mount(f"/{directory}", f"{root}/{directory}", None, MS_BIND | MS_REC)
    syscalls.mount("tmpfs", f"{root}/run", "tmpfs", 0, "mode=755")
    for pair in options.bind:
        file, _, place = pair.partition(":")
        if not os.path.exists(f"{root}{place}"):
            raise SystemExit(f"{place} is not in {root}")
        syscalls.mount(file, f"{root}{place}", None, MS_BIND)
    enter_root(root)
    if options.uid:
        os.setgroups([])
        os.setgid(options.uid)
        os.setuid(options.uid)
    program = options.command[0]
    for path in [program] if "/" in program else [f"{directory}/{program}" for directory in directories]:
        if os.access(path, os.X_OK):
            os.execv(path, options.command)
    raise SystemExit(f"{program} is not in {root}")


if __name__ == "__main__":
    main()
