"""``python -m testkit.engines.byhand VARIANT SOURCE PATH -- CMD…``: becomes a container, one system call after another.

SOURCE is a root directory, PATH an empty directory to mount it on. Prints the pid of the container's first process,
then waits for it. Variants: see ``rigs.ByHand``.
"""

from __future__ import annotations

import os
import shutil
import sys

from cntr.linux import syscalls
from testkit.container import NAMESPACES, enter_root

PRIVATE = syscalls.MS_REC | syscalls.MS_PRIVATE
MS_SHARED = 1 << 20
MANY = 2000


def assemble(variant: str, source: str, path: str) -> None:
    """Mount the new root and change into it; the caller is in a mount namespace of its own."""
    syscalls.mount(None, "/", None, PRIVATE)
    if variant == "deleted_exe":
        syscalls.mount("tmpfs", path, "tmpfs", 0)
        shutil.copytree(source, path, symlinks=True, dirs_exist_ok=True)
    else:
        syscalls.mount(source, path, None, syscalls.MS_BIND)
    if variant != "scratch":
        syscalls.mount("proc", f"{path}/proc", "proc", 0)
    if variant == "many_mounts":
        syscalls.mount("tmpfs", f"{path}/data", "tmpfs", 0)
        for number in range(MANY):
            os.mkdir(f"{path}/data/{number}")
            syscalls.mount(f"{path}/data/{number}", f"{path}/data/{number}", None, syscalls.MS_BIND)
    enter_root(path)
    if variant == "shared_root":
        syscalls.mount(None, "/", None, syscalls.MS_REC | MS_SHARED)


def main(variant: str, source: str, path: str, *command: str) -> None:
    """Fork into the new namespaces, and exec there."""
    if variant != "chroot":
        syscalls.unshare(NAMESPACES)
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        os.read(reading, 1)  # closed by the exec
        print(child, flush=True)
        os.waitpid(child, 0)
        return
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    if variant == "chroot":
        os.chroot(path)
        os.chdir("/")
    else:
        assemble(variant, source, path)
    if variant == "deleted_exe":
        program = os.path.realpath(command[0])
        fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        os.unlink(program)
        os.execve(fd, command, dict(os.environ))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:4], *sys.argv[5:])
