"""Mounting at a path below a root that may belong to a stranger, without following links out of it."""

from __future__ import annotations

import errno
import os
import stat

from cntr.linux import syscalls

# Magic links (/proc/PID/fd/N) would lead to what this process has open, which may be the host's (CVE-2024-21626).
INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
CLONE = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
CLONE_ALL = CLONE | syscalls.AT_RECURSIVE


def open_inside(path: str, flags: int = 0) -> int:
    """An O_PATH fd of PATH, resolved inside the process's root. Raises OSError."""
    return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH | flags, INSIDE)


def place(tree_fd: int, path: str, *, is_dir: bool, follow: bool = False) -> None:
    """Mount a detached tree at PATH of the root and close its fd; PATH is made to exist, in this mount namespace only.

    follow: a symbolic link at PATH itself is followed, inside the root; otherwise it is covered. Raises OSError.
    """
    try:
        _mount(tree_fd, path, is_dir, follow)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP):
            raise
        make(path, is_dir=is_dir)
        _mount(tree_fd, path, is_dir, follow=False)
    os.close(tree_fd)


def _mount(tree_fd: int, path: str, is_dir: bool, follow: bool) -> None:
    fd = open_inside(path, 0 if follow else os.O_NOFOLLOW)
    try:
        mode = os.fstat(fd).st_mode
        if is_dir != stat.S_ISDIR(mode) or (is_dir and stat.S_ISLNK(mode)):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        syscalls.move_mount(tree_fd, fd, "")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def make(path: str, *, is_dir: bool) -> None:
    """Make PATH exist without writing to the tools' tree: a tmpfs stands in for its nearest existing directory.

    The stand-in shows all that the directory holds (mounts, files, symbolic links) and the new name; what can't be looked at,
    a dead FUSE mount for one, is left out. New files made in that one directory live as long as the session. Raises OSError.
    """
    parent, missing = os.path.dirname(path), [os.path.basename(path)]
    while True:
        try:
            parent_fd = open_inside(parent, os.O_DIRECTORY)
            break
        except OSError:
            if parent == "/":
                raise
            parent, name = os.path.split(parent)
            missing.insert(0, name)
    tmpfs = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "4m"}, syscalls.MOUNT_ATTR_NODEV)
    try:
        binds = _show(parent_fd, tmpfs, missing[0])
        syscalls.move_mount(tmpfs, parent_fd, "")
        for name, fd in binds:
            try:
                syscalls.move_mount(fd, tmpfs, name)
            except FileNotFoundError:
                pass  # it has been removed since
            os.close(fd)
        if parent == "/":  # our root is still the covered directory: move to what covers it
            os.fchdir(tmpfs)
            os.chroot(".")
        for index in range(len(missing)):
            last = index == len(missing) - 1
            _make(tmpfs, "/".join(missing[: index + 1]), is_dir=is_dir or not last)
    finally:
        os.close(parent_fd)
        os.close(tmpfs)


def _show(parent_fd: int, tmpfs: int, left_out: str) -> list[tuple[str, int]]:
    """Make the names of a directory in TMPFS; [(name, detached tree)] of what is to be mounted there."""
    binds = []
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        names = os.listdir(listing)
    finally:
        os.close(listing)
    for name in names:
        if name == left_out:
            continue
        try:
            # By the name: a directory entry's type would be that of a symbolic link which a mount covers already.
            mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(name, dir_fd=parent_fd), name, dir_fd=tmpfs)
                continue
            flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_SYMLINK_NOFOLLOW
            tree = syscalls.open_tree(parent_fd, name, flags)
        except OSError:
            continue
        _make(tmpfs, name, is_dir=stat.S_ISDIR(mode))
        binds.append((name, tree))
    return binds


def _make(dir_fd: int, name: str, *, is_dir: bool) -> None:
    if is_dir:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=dir_fd))
