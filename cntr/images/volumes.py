"""A container's volumes and tmpfs mounts, as detached mounts; a layer's directories. Used by the
builder and the stand-in: see ``room``.
"""

from __future__ import annotations

import os
import stat

from cntr.linux import attributes, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.images.blueprint import Mount

CLONE = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
FILE = 16 << 20  # largest file, in bytes, that is copied to be writable; a larger one is read-only
MOST_OLDER = 8
VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks")  # tmpfs(5)
FLAGS = {"ro": syscalls.MOUNT_ATTR_RDONLY, "noexec": syscalls.MOUNT_ATTR_NOEXEC, "nosuid": syscalls.MOUNT_ATTR_NOSUID}
OPPOSITES = {"rw": "ro", "exec": "noexec", "suid": "nosuid"}


def older(layer: str) -> list[str]:
    """diff1, diff2, … beside a layer's diff, and below it: its files before containers/storage changed their owners."""
    found: list[str] = []
    while layer.endswith("/diff") and len(found) < MOST_OLDER and os.path.isdir(f"{layer}{len(found) + 1}"):
        found.append(f"{layer}{len(found) + 1}")
    return found


def bound(source: int, mount: Mount, *, write: bool) -> int:
    """A mount of the fd SOURCE, without devices; without WRITE read-only, including all mounts below it."""
    fd = syscalls.open_tree(source, "", CLONE)
    write = write and not mount.read_only and "overlay" not in mount.options
    attrs = flags(mount.options) | (0 if write else syscalls.MOUNT_ATTR_RDONLY)
    attributes.add(fd, syscalls.MOUNT_ATTR_NODEV | attrs, recursive=True)
    return fd


def flags(options: list[str]) -> int:
    """The mount attributes of the options; of ro and rw, exec and noexec, the last one counts."""
    found = 0
    for option in options:
        found |= FLAGS.get(option, 0)
        found &= ~FLAGS.get(OPPOSITES.get(option, ""), 0)
    return found


def layered(source: int, mount: Mount, upper: str, work: str) -> int:
    """The directory behind SOURCE under a layer of its own. Raises OSError: not every filesystem can be an overlay's
    layer.
    """
    options: dict[str, str | None] = {"source": "cntr", "lowerdir": f"/proc/self/fd/{source}"}
    options |= {"upperdir": upper, "workdir": work}
    return syscalls.new_filesystem("overlay", options, syscalls.MOUNT_ATTR_NODEV | flags(mount.options))


def copied(source: int, mount: Mount, path: str, host: str = "") -> int:
    """Copy the file behind SOURCE to PATH and return a mount of the copy. Raises OSError.

    host: a name to add to this hosts(5): when a container ends, its engine removes its name and
    address.
    """
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode) or status.st_size > FILE:
        raise OSError(27, "no file, or a large one", path)
    reading = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        writing = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            left, words = FILE, b""
            while left > 0 and (chunk := os.read(reading, min(left, 1 << 20))):
                os.write(writing, chunk)
                left, words = left - len(chunk), words + chunk if host else b""
            if host and os.fsencode(host) not in words.split():
                start = b"\n" if words and not words.endswith(b"\n") else b""
                os.write(writing, start + b"127.0.0.1\t" + os.fsencode(host) + b"\n")
            os.fchown(writing, status.st_uid, status.st_gid)
            os.fchmod(writing, stat.S_IMODE(status.st_mode))
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    fd = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
    attributes.add(fd, syscalls.MOUNT_ATTR_NODEV | flags(mount.options))
    return fd


def in_memory(mount: Mount, place: os.stat_result | None) -> int:
    """A tmpfs with the mount's options; without a mode option it gets that of the directory it covers, as in runc."""
    usual = {"mode": f"{stat.S_IMODE(place.st_mode):o}" if place else "1777"}
    pairs = [option.partition("=")[::2] for option in mount.options]
    wanted = {key: value for key, value in pairs if key in VALUES}
    attrs = flags(mount.options) | (syscalls.MOUNT_ATTR_RDONLY if mount.read_only else 0)
    attrs |= syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    attrs |= syscalls.MOUNT_ATTR_STRICTATIME if "strictatime" in mount.options else 0
    try:
        return syscalls.new_filesystem("tmpfs", {**usual, **wanted}, attrs)
    except OSError:  # an invalid value, or an id that its user namespace does not map
        return syscalls.new_filesystem("tmpfs", usual, attrs)


def terminals() -> int:
    """A devpts instance of its own, as runc mounts it."""
    options = {"newinstance": None, "ptmxmode": "0666", "mode": "0620"}
    attrs = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    try:
        return syscalls.new_filesystem("devpts", {**options, "gid": "5"}, attrs)
    except OSError:  # its user namespace has no group 5
        return syscalls.new_filesystem("devpts", options, attrs)
