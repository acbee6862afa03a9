"""An image's layers as one directory: a detached, read-only overlay that nobody else sees and that ends with its fd."""

from __future__ import annotations

import os
import tempfile

from cntr.errors import CntrError
from cntr.linux import attributes, sockets, syscalls

MOST_LAYERS = 400  # the kernel's own limit is 500 (OVL_MAX_STACK)
# Read-only: no access time is written, either.
_ATTRS = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def merged(layers: list[str], users: int = -1) -> int:
    """An fd of the root directory of the merged LAYERS, lowest first. users: a user namespace whose
    id map applies to a single layer (see ``namespaces.mapped``). Raises CntrError.
    """
    if len(layers) > MOST_LAYERS:
        raise CntrError(f"the image has {len(layers)} layers", f"{MOST_LAYERS} are the most that can be merged here")
    if len(layers) == 1:
        return _alone(layers[0], users)
    if users >= 0:
        raise CntrError("the ids in its files are shifted, in several layers", "export it, then slim dir:ROOT")
    try:
        return _by_mount(layers)
    except OSError as error:
        raise CntrError(
            f"the image's layers can't be merged: {error.strerror}",
            "overlayfs takes root, or a user namespace (podman unshare)",
        ) from None


def _alone(layer: str, users: int) -> int:
    """A single layer: a read-only copy of its mount, without an overlay."""
    fd = syscalls.open_tree(syscalls.AT_FDCWD, layer, syscalls.OPEN_TREE_CLONE)
    try:
        attributes.add(fd, _ATTRS)
        if users >= 0:
            syscalls.mount_setattr(fd, "", recursive=False, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=users)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(fd)


def _by_mount(layers: list[str]) -> int:
    """Mount the overlay in a child with its own mount namespace, which sends back a detached copy.

    mount(2) accepts one page of options, so layers are named by links of one to three letters in the working directory.
    (fsconfig(2) with ``lowerdir+``, since kernel 6.8, has no such limit.)
    """
    place = tempfile.mkdtemp(prefix="cntr-slim-")
    try:
        tree_fd = sockets.fd_from_child(lambda: _mounted(layers, place), "overlay")
    finally:
        os.rmdir(place)
    try:
        return os.open(f"/proc/self/fd/{tree_fd}", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(tree_fd)


def _mounted(layers: list[str], place: str) -> int:
    """In the child: a detached copy of the overlay."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("cntr", place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV)
    os.chdir(place)
    os.mkdir("m")
    for number, layer in enumerate(layers):
        os.symlink(layer, f"{number:x}")
    lower = ":".join(f"{number:x}" for number in reversed(range(len(layers))))
    options = (
        f"lowerdir={lower}" if os.stat("/proc/self/ns/user").st_ino == 0xEFFFFFFD else f"userxattr,lowerdir={lower}"
    )
    syscalls.mount("overlay", "m", "overlay", syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    return syscalls.open_tree(syscalls.AT_FDCWD, "m", syscalls.OPEN_TREE_CLONE)
