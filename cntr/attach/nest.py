"""Assemble the nested mount namespace (the paper, section 3.2.3), in a process of its own.

Runs after the fork: nothing is imported, printed, looked up by name service or loaded here, because from the first setns(2) on
a path may resolve in the target's filesystem. Each function names its step in ``Steps`` so that a failure can say where.
"""

from __future__ import annotations

import os
import stat

from cntr.attach.target import Target
from cntr.attach.tools import Tools
from cntr.linux import syscalls

BASE_DIR = "/var/lib/cntr"
ETC_FILES = ("passwd", "group", "hosts", "hostname", "resolv.conf", "localtime")
CLONE_TREE = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH
IN_TARGET = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class Steps:
    """The step under way, for the error of a failing one."""

    __slots__ = ("now", "run")

    def __init__(self) -> None:
        """Before the first step."""
        self.now = "start"
        self.run = "run"  # what the last step, execve(2), is called


class Nest:
    """What the nested mount namespace is made of; everything opened before the fork.

    server: serves the tools' tree by FUSE, None on the mount transport. own_mnt_fd: the caller's mount namespace; base: where the
    target's tree goes; devpts_fd: a detached devpts of the session's own, whose terminals the container cannot open.
    """

    __slots__ = ("base", "devpts_fd", "own_mnt_fd", "read_only", "server", "steps", "target", "tools", "tree_fd")

    def __init__(
        self,
        target: Target,
        tools: Tools,
        server: FileServer | None,
        *,
        base: str,
        read_only: bool,
        own_mnt_fd: int,
        devpts_fd: int,
    ) -> None:
        """Keep the parts."""
        self.target, self.tools, self.server, self.base, self.read_only = target, tools, server, base, read_only
        self.own_mnt_fd, self.devpts_fd, self.tree_fd = own_mnt_fd, devpts_fd, -1
        self.steps = Steps()

    def assemble(self) -> None:
        """Make it the calling process's mount namespace and root. Raises OSError; ``steps.now`` says where."""
        self.clone_target()
        if self.server:
            self.mount_served_tools(self.server)
        else:
            self.enter_tools()
        if self.read_only:
            self.steps.now = "make the tools' tree read-only"
            syscalls.mount_setattr(syscalls.AT_FDCWD, "/", recursive=True, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        self.graft_target()
        self.graft_kernel_filesystems()
        self.graft_etc()
        os.chdir("/")

    def clone_target(self) -> None:
        """A detached copy of the target's mount tree, taken inside its mount namespace, which is not changed."""
        target = self.target
        if "mnt" in target.namespaces:
            self.steps.now = "enter the container's mount namespace"
            syscalls.setns(target.namespaces["mnt"], syscalls.CLONE_NEWNS)
        self.steps.now = "copy the container's mount tree"
        try:
            self.tree_fd = syscalls.open_tree(target.root_fd, "", CLONE_TREE)
        except OSError as error:
            if error.errno != 22:  # EINVAL: the root mount is unbindable (Apptainer)
                raise
            # A private copy of the namespace is bindable: unshare(2) moves our root and working directory along.
            os.fchdir(target.root_fd)
            os.chroot(".")
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            self.tree_fd = syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)

    def enter_tools(self) -> None:
        """A private copy of the tools' mount namespace, with the tools' tree as its root."""
        tools = self.tools
        self.steps.now = "enter the tools' mount namespace"
        syscalls.setns(tools.mnt_fd if tools.mnt_fd >= 0 else self.own_mnt_fd, syscalls.CLONE_NEWNS)
        is_namespace_root = os.path.samestat(os.fstat(tools.root_fd), os.stat("/"))
        self.steps.now = "copy the tools' mount tree"
        tree_fd = -1 if is_namespace_root else syscalls.open_tree(tools.root_fd, "", CLONE_TREE)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        # Before anything is mounted: a shared mount would carry it into the namespace we came from.
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        if tree_fd >= 0:
            self._make_root(tree_fd)

    def mount_served_tools(self, server: FileServer) -> None:
        """The paper's way: a private copy of the target's mount namespace, with CntrFS as its root."""
        self.steps.now = "copy the container's mount namespace"
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        self.steps.now = "mount CntrFS"
        tree_fd = syscalls.new_filesystem("fuse", server.mount_options())
        server.mounted()
        self._make_root(tree_fd)

    def _make_root(self, tree_fd: int) -> None:
        """Make a detached tree the root; nothing of the old one stays mounted, to be found by a privileged session."""
        self.steps.now = "make the tools' tree the root"
        syscalls.move_mount(tree_fd, syscalls.AT_FDCWD, "/")
        os.fchdir(tree_fd)
        syscalls.mount(
            None, ".", None, syscalls.MS_REC | syscalls.MS_PRIVATE
        )  # a copy of a shared mount is shared; pivot_root(2) wants none
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.close(tree_fd)
        os.chdir("/")

    def graft_target(self) -> None:
        """The target's tree at the base directory."""
        self.steps.now = "mount the container's tree at"
        place(self.tree_fd, self.base, is_dir=True, read_only=self.read_only)
        syscalls.mount(None, self.base, None, syscalls.MS_REC | syscalls.MS_PRIVATE)

    def graft_kernel_filesystems(self) -> None:
        """/proc, /dev and /sys as the target has them; a fresh proc or sysfs of its namespaces where it has none."""
        self.steps.now = "mount the container's /proc"
        if not self._graft_directory("proc", syscalls.PROC_SUPER_MAGIC):
            place(syscalls.new_filesystem("proc", {}), "/proc", is_dir=True, read_only=self.read_only)
        self.steps.now = "mount the container's /sys"
        if not self._graft_directory("sys", syscalls.SYSFS_MAGIC):
            sysfs = syscalls.new_filesystem("sysfs", {}, syscalls.MOUNT_ATTR_RDONLY)
            place(sysfs, "/sys", is_dir=True, read_only=self.read_only)
        self.steps.now = "mount the container's /dev"
        self._graft_directory("dev", None)  # without one the tools' own stays
        if self.devpts_fd >= 0 and os.path.isdir("/dev/pts"):
            self.steps.now = "mount the session's terminals"
            syscalls.move_mount(self.devpts_fd, syscalls.AT_FDCWD, "/dev/pts")

    def _graft_directory(self, name: str, magic: int | None) -> bool:
        """Mount the target's /NAME at /NAME, if it is a directory (of that filesystem type)."""
        try:
            resolve = IN_TARGET | syscalls.RESOLVE_NO_SYMLINKS
            fd = syscalls.openat2(self.tree_fd, name, os.O_PATH | os.O_DIRECTORY, resolve)
        except OSError:
            return False
        try:
            if magic is not None and syscalls.filesystem_magic(fd) != magic:
                return False
            if magic is None and not has_null_device(fd):
                return False
            place(syscalls.open_tree(fd, "", CLONE_TREE), f"/{name}", is_dir=True, read_only=self.read_only)
            return True
        finally:
            os.close(fd)

    def graft_etc(self) -> None:
        """The target's /etc files over the tools'; one that is missing, or no regular file, leaves the tools' own."""
        for name in ETC_FILES:
            self.steps.now = "mount the container's file at"
            try:
                fd = syscalls.openat2(self.tree_fd, f"etc/{name}", os.O_PATH, IN_TARGET)
            except OSError:
                continue
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    clone = syscalls.open_tree(fd, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
                    place(clone, f"/etc/{name}", is_dir=False, read_only=self.read_only)
            finally:
                os.close(fd)


def new_devpts() -> int:
    """A detached devpts mount of its own instance; returns its fd. Raises OSError."""
    return syscalls.new_filesystem(
        "devpts", {"ptmxmode": "0666", "mode": "0620"}, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    )


def has_null_device(dev_fd: int) -> bool:
    """Whether a /dev is one that programs can live with."""
    try:
        return stat.S_ISCHR(os.stat("null", dir_fd=dev_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def place(tree_fd: int, path: str, *, is_dir: bool, read_only: bool = False) -> None:
    """Mount a detached tree at PATH of the nest and close its fd's claim on it; PATH is made to exist, in the nest only."""
    try:
        syscalls.move_mount(tree_fd, syscalls.AT_FDCWD, path)
    except OSError as error:
        if error.errno not in (2, 20, 22):  # ENOENT; ENOTDIR, EINVAL: a file where a directory is to be, or the reverse
            raise
        make_mountpoint(path, is_dir=is_dir, read_only=read_only)
        syscalls.move_mount(tree_fd, syscalls.AT_FDCWD, path)


def make_mountpoint(path: str, *, is_dir: bool, read_only: bool = False) -> None:
    """Make PATH exist without writing to the tools' tree: a tmpfs stands in for its nearest existing directory.

    The stand-in shows all that the directory holds (bind mounts, symbolic links) and the new name. New files made in that
    one directory live as long as the session.
    """
    parent, missing = os.path.dirname(path), [os.path.basename(path)]
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
        missing.insert(0, name)
    tmpfs = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "4m"}, syscalls.MOUNT_ATTR_NODEV)
    binds = []
    for name in os.listdir(parent):
        if name == missing[0]:
            continue
        source = os.path.join(parent, name)
        # Asked of the path: a directory entry's type would be that of a symbolic link which a mount covers already.
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), name, dir_fd=tmpfs)
            continue
        _make(tmpfs, name, is_dir=stat.S_ISDIR(mode))
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_SYMLINK_NOFOLLOW
        binds.append((name, syscalls.open_tree(syscalls.AT_FDCWD, source, flags)))
    syscalls.move_mount(tmpfs, syscalls.AT_FDCWD, parent)
    for name, fd in binds:
        syscalls.move_mount(fd, tmpfs, name)
        os.close(fd)
    if parent == "/":  # our root is still the covered directory: move to what covers it
        os.fchdir(tmpfs)
        os.chroot(".")
    for index in range(len(missing)):
        last = index == len(missing) - 1
        _make(tmpfs, "/".join(missing[: index + 1]), is_dir=is_dir or not last)
    if read_only:
        syscalls.mount_setattr(tmpfs, "", recursive=False, attr_set=syscalls.MOUNT_ATTR_RDONLY)
    os.close(tmpfs)


def _make(dir_fd: int, name: str, *, is_dir: bool) -> None:
    if is_dir:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=dir_fd))


TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.fileserver import FileServer
