"""Mounting at a path below a root that may be a stranger's, without following links out of that root."""

from __future__ import annotations

import errno
import os
import stat

from cntr.linux import syscalls

# Magic links (/proc/PID/fd/N) would lead to this process's open files, which may be the host's (CVE-2024-21626).
INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
CLONE = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
CLONE_ALL = CLONE | syscalls.AT_RECURSIVE


def open_inside(path: str, flags: int = 0) -> int:
    """Return an O_PATH fd of PATH, resolved inside the process's root. Raises OSError."""
    return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH | flags, INSIDE)


def place(tree_fd: int, path: str, *, is_dir: bool, follow: bool = False, own_fd: int = -1) -> None:
    """Mount a detached tree at PATH of the root and close its fd. PATH is created if missing, in this mount
    namespace only.

    follow: follow a symbolic link at PATH, inside the root; otherwise cover it. own_fd: of the session's own file
    system, in which PATH is simply created. Raises OSError.
    """
    try:
        _mount(tree_fd, path, is_dir, follow)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP):
            raise
        make(path, is_dir=is_dir, own_fd=own_fd)
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


def make(path: str, *, is_dir: bool, own_fd: int = -1) -> None:
    """Create PATH without writing to the tools' tree: a tmpfs, the stand-in, covers the nearest existing directory.
    Raises OSError.

    The stand-in shows everything that the directory holds (mounts, files, symbolic links) and the new name. Entries
    that cannot be found, such as a dead FUSE mount's by CntrFS, are left out. Files created later in that directory live as
    long as the session. A directory of the session's own file system (own_fd) is not covered: its owner, mode and
    size stay as they are.
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
    if own_fd >= 0 and os.fstat(parent_fd).st_dev == os.fstat(own_fd).st_dev:
        try:
            _make_all(parent_fd, missing, is_dir)
        finally:
            os.close(parent_fd)
        return
    tmpfs = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "4m"}, syscalls.MOUNT_ATTR_NODEV)
    try:
        binds = _show(parent_fd, tmpfs, missing[0])
        syscalls.move_mount(tmpfs, parent_fd, "")
        for name, fd in binds:
            try:
                syscalls.move_mount(fd, tmpfs, name)
            except FileNotFoundError:
                pass  # it has been removed meanwhile
            os.close(fd)
        if parent == "/":  # our root is still the covered directory: move to its cover
            os.fchdir(tmpfs)
            os.chroot(".")
        _make_all(tmpfs, missing, is_dir)
    finally:
        os.close(parent_fd)
        os.close(tmpfs)


def _show(parent_fd: int, tmpfs: int, left_out: str) -> list[tuple[str, int]]:
    """Create the names of a directory in TMPFS; return [(name, detached tree)] to mount on them."""
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
            is_dir = _is_directory(parent_fd, name)
            if not is_dir:
                try:
                    os.symlink(os.readlink(name, dir_fd=parent_fd), name, dir_fd=tmpfs)
                    continue
                except OSError:  # EINVAL: no symbolic link
                    pass
            tree = syscalls.open_tree(parent_fd, name, CLONE_ALL | syscalls.AT_SYMLINK_NOFOLLOW)
        except OSError:
            continue
        _make(tmpfs, name, is_dir=is_dir)
        binds.append((name, tree))
    return binds


def _is_directory(parent_fd: int, name: str) -> bool:
    """Whether NAME is a directory, by what the kernel knows: stat(2) would ask a FUSE server, which may never answer."""
    try:
        os.close(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd))
    except NotADirectoryError:
        return False
    return True


def _make_all(dir_fd: int, names: list[str], is_dir: bool) -> None:
    for index in range(len(names)):
        _make(dir_fd, "/".join(names[: index + 1]), is_dir=is_dir or index < len(names) - 1)


def _make(dir_fd: int, name: str, *, is_dir: bool) -> None:
    if is_dir:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=dir_fd))
