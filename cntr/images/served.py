"""Layers mounted by fuse-overlayfs, if the container's engine uses it: its marks of deleted files are unknown to the
kernel.
"""

from __future__ import annotations

import os
import time

from cntr.engines import commands
from cntr.linux import syscalls

PROGRAM = "fuse-overlayfs"
SECONDS, SIGKILL = 10.0, 9


def overlay(program: str, layers: list[str], upper: str, work: str, scratch: str) -> int:
    """A detached mount. layers, upper, work: directories, /proc/self/fd/N for an fd, topmost first. Raises OSError.

    scratch: a directory for mounts of its own; upper and work are in it, or beside each other. The server is a process
    with the caller's ids in its namespaces, and ends with the last mount.
    """
    merged = f"{scratch}/merged"
    os.mkdir(merged, 0o700)
    # The server resolves names itself, and the scratch directory covers some: so each directory is mounted there.
    # Directories between which it renames must be in one mount.
    lower = [_mounted(name, f"{scratch}/lower{number}") for number, name in enumerate(layers)]
    if not upper.startswith(scratch):
        own = _mounted(f"{upper}/..", f"{scratch}/own")
        upper, work = (f"{own}/{os.path.basename(os.readlink(name))}" for name in (upper, work))
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    before, deadline = os.stat(merged).st_dev, time.monotonic() + SECONDS
    server = os.posix_spawn(
        program, [PROGRAM, "-f", "-o", options, merged], {"PATH": ":".join(commands.PATH)}, file_actions=null
    )
    try:
        while os.stat(merged).st_dev == before:
            if os.waitpid(server, os.WNOHANG)[0] or time.monotonic() > deadline:
                raise OSError(5, f"{PROGRAM} did not mount it")
            time.sleep(0.002)
        tree = syscalls.open_tree(syscalls.AT_FDCWD, merged, syscalls.OPEN_TREE_CLONE)
        # otherwise the server, which is in this mount namespace, would keep it
        syscalls.umount(merged, syscalls.MNT_DETACH)
    except BaseException:
        try:
            os.kill(server, SIGKILL)
        except ProcessLookupError:
            pass  # it has ended
        raise
    return tree


def _mounted(name: str, place: str) -> str:
    os.mkdir(place, 0o700)
    tree = syscalls.open_tree(syscalls.AT_FDCWD, name, syscalls.OPEN_TREE_CLONE)
    syscalls.move_mount(tree, syscalls.AT_FDCWD, place)
    os.close(tree)
    return place
