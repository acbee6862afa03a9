"""Assembles the nested mount namespace (the paper, section 3.2.3), in a process of its own.

Runs after the fork: nothing is imported, printed, loaded, or looked up by name service, because after the first
setns(2) a path may resolve in the target's filesystem. Each function names its step in ``progress``, so a failure
can say where it happened.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.attach import places, steps, view
from cntr.attach.private import Devices, Private
from cntr.attach.target import Target
from cntr.attach.tools import Tools
from cntr.errors import CntrError, printable
from cntr.linux import attributes, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from cntr.attach.fileserver import FileServer
    from cntr.attach.shares import Share

    class Entrance(Protocol):
        """How the tools' tree becomes the session's root."""

        @property
        def is_view(self) -> bool:
            """Whether the root is the tools view."""

        def enter(self, progress: steps.Progress) -> list[str]:
            """Make it the root; return notes for the user. Raises OSError."""


BASE_DIR = "/var/lib/cntr"
IN_TARGET = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
# What an engine hides or makes read-only in a container's /proc. A new /proc shows it all, and uid 0 can change the
# machine's settings there without a capability.
PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
PROC_COVERED = ("acpi", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats")


class Nest:
    """The parts of the nested mount namespace, all opened before the fork.

    entrance: how the tools' tree becomes the root; base: where the target's tree goes; devpts_fd: a detached devpts
    of the session's own, whose terminals the container cannot open; private, devices: the session's own directories
    and devices. proc_fd: a /proc of this process's pid namespace.
    """

    def __init__(
        self,
        target: Target,
        entrance: Entrance,
        *,
        base: str,
        devpts_fd: int,
        private: Private,
        devices: Devices,
        shares: list[Share],
        proc_fd: int,
    ) -> None:
        self.proc_fd = proc_fd
        self.target, self.entrance, self.base, self.devpts_fd = target, entrance, base, devpts_fd
        self.private, self.devices, self.shares, self.tree_fd = private, devices, shares, -1
        self.progress = steps.Progress()

    def assemble(self) -> list[str]:
        """Assemble it as the mount namespace and root of the calling process; return notes for the user.

        Raises OSError; ``progress.now`` names the step.
        """
        self.clone_target()
        notes = self.entrance.enter(self.progress)
        self.devices.mount(self.devpts_fd, self.progress)
        if self.entrance.is_view:
            self.private.mount(self.progress)
        else:
            self.private.mount_files(self.progress)
        self.graft_target()
        self.graft_kernel_filesystems()
        for share in self.shares:
            share.mount(self.progress, self.private.tree_fd if self.entrance.is_view else -1)
        self.private.let_through([share.path for share in self.shares])
        self.forbid_set_id()
        os.chdir("/")
        return notes + [share.note for share in self.shares if share.note]

    def forbid_set_id(self) -> None:
        """Disable set-id bits and file capabilities on every mount: they clear the ambient set, which keeps the
        container out (guard.py).
        """
        self.progress.now = steps.NOSUID
        attributes.add_everywhere(syscalls.MOUNT_ATTR_NOSUID, self.proc_fd)

    def clone_target(self) -> None:
        """Take a detached copy of the target's mount tree, inside its mount namespace, which is not changed."""
        target = self.target
        if "mnt" in target.namespaces:
            self.progress.now = steps.TARGET_MOUNTS
            syscalls.setns(target.namespaces["mnt"], syscalls.CLONE_NEWNS)
        self.progress.now = steps.COPY_TARGET
        try:
            self.tree_fd = syscalls.open_tree(target.root_fd, "", places.CLONE_ALL)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the root mount is unbindable (Apptainer)
                raise
            # In a private copy of the namespace it is bindable: unshare(2) moves our root and working directory
            # along.
            os.fchdir(target.root_fd)
            os.chroot(".")
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            self.tree_fd = syscalls.open_tree(syscalls.AT_FDCWD, "/", syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)

    def graft_target(self) -> None:
        """Mount the target's tree at the base directory."""
        self.progress.now = steps.TREE
        places.place(os.dup(self.tree_fd), self.base, is_dir=True)
        attributes.make_private(self.tree_fd)

    def graft_kernel_filesystems(self) -> None:
        """Mount the target's /proc and /sys; where it has none, or only partial ones, new ones of its namespaces."""
        self.progress.now = steps.PROC
        if self.target.partial_proc or not self._graft_directory("proc", syscalls.PROC_SUPER_MAGIC):
            places.place(namespaces.proc_of(self.target.namespaces.get("pid", -1)), "/proc", is_dir=True)
            self._restrict_proc()
        self.progress.now = steps.SYS
        if not self._graft_directory("sys", syscalls.SYSFS_MAGIC):
            try:
                sysfs = syscalls.new_filesystem("sysfs", {}, syscalls.MOUNT_ATTR_RDONLY)
            except PermissionError:
                if not self.target.as_owner:
                    raise
                return  # the network namespace is the host's; only its owner may mount its sysfs
            places.place(sysfs, "/sys", is_dir=True)

    def _restrict_proc(self) -> None:
        """Restrict a new /proc as an engine would. Raises OSError."""
        for name in (*PROC_READ_ONLY, *PROC_COVERED):
            try:
                fd = places.open_inside(f"/proc/{name}", os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # not in this kernel
            try:
                if name in PROC_READ_ONLY:
                    tree = syscalls.open_tree(fd, "", places.CLONE)
                elif stat.S_ISDIR(os.fstat(fd).st_mode):
                    tree = syscalls.new_filesystem("tmpfs", {"mode": "555", "size": "4k"})
                else:
                    tree = syscalls.open_tree(self.devices.tree_fd, "null", syscalls.OPEN_TREE_CLONE)
                attributes.add(tree, syscalls.MOUNT_ATTR_RDONLY)
                syscalls.move_mount(tree, fd, "")
                os.close(tree)
            finally:
                os.close(fd)

    def _graft_directory(self, name: str, magic: int) -> bool:
        """Mount the target's /NAME at /NAME if it is the root of a file system of that type."""
        if f"/{name}" in self.target.slow_places:
            return False  # FUSE: its type depends on its server, which may never answer
        try:
            resolve = IN_TARGET | syscalls.RESOLVE_NO_SYMLINKS
            fd = syscalls.openat2(self.tree_fd, name, os.O_PATH | os.O_DIRECTORY, resolve)
        except OSError:
            return False
        try:
            if syscalls.filesystem_magic(fd) != magic or os.fstat(fd).st_ino != 1:
                return False  # nothing is mounted there, or only a directory of it
            places.place(syscalls.open_tree(fd, "", places.CLONE_ALL), f"/{name}", is_dir=True, follow=True)
            return True
        finally:
            os.close(fd)


class MountedTools:
    """The mount transport's entrance: a private copy of the tools' mount namespace.

    own_mnt_fd: the caller's mount namespace; shown: the tools view, None for the whole tree.
    """

    __slots__ = ("own_mnt_fd", "read_only", "shown", "tools")

    def __init__(self, tools: Tools, own_mnt_fd: int, shown: view.View | None, *, read_only: bool) -> None:
        self.tools, self.own_mnt_fd, self.shown, self.read_only = tools, own_mnt_fd, shown, read_only

    @property
    def is_view(self) -> bool:
        """Whether the root is the tools view."""
        return self.shown is not None

    def enter(self, progress: steps.Progress) -> list[str]:
        """Make it the root; return notes for the user. Raises OSError."""
        view.enter_tools(self.tools, self.own_mnt_fd, progress)
        if self.shown:
            self.shown.assemble(progress)
            return self.shown.notes
        if self.read_only:
            progress.now = steps.VIEW
            syscalls.mount_setattr(syscalls.AT_FDCWD, "/", recursive=True, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        return []


class ServedTools:
    """The fuse transport's entrance, the paper's: a private copy of the target's mount namespace, with CntrFS as
    its root.
    """

    __slots__ = ("is_view", "server")

    def __init__(self, server: FileServer, *, is_view: bool) -> None:
        self.server, self.is_view = server, is_view

    def enter(self, progress: steps.Progress) -> list[str]:
        """Make it the root. Raises OSError."""
        progress.now = steps.SERVED
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        options = self.server.mount_options
        if self.is_view:
            options = {
                **options,
                "ro": None,
            }  # the superblock too: reads then cause no access time updates
        tree_fd = syscalls.new_filesystem("fuse", options, self.server.mount_attributes())
        self.server.mounted()
        view.make_root(tree_fd, progress)
        return []


class OwnRoot:
    """The entrance of ``exec``: the container's own mount namespace and root, entered by the launcher."""

    __slots__ = ("progress", "target")

    def __init__(self, target: Target) -> None:
        self.target, self.progress = target, steps.Progress()

    def assemble(self) -> list[str]:
        """Does nothing; see ``enter``."""
        return []

    def enter(self) -> None:
        """Enter the container's root. Raises OSError."""
        self.progress.now = steps.OWN_ROOT
        if "mnt" in self.target.namespaces:
            syscalls.setns(self.target.namespaces["mnt"], syscalls.CLONE_NEWNS)
        os.fchdir(self.target.root_fd)
        os.chroot(".")


def new_devpts() -> int:
    """Make a detached devpts mount, an instance of its own; return its fd. Raises OSError."""
    return syscalls.new_filesystem(
        "devpts", {"ptmxmode": "0666", "mode": "0620"}, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
    )


def base_dir() -> str:
    """Return where the container's tree is in a session: /var/lib/cntr, or CNTR_BASE_DIR. Raises CntrError."""
    base = os.environ.get("CNTR_BASE_DIR") or BASE_DIR
    if not base.startswith("/") or os.path.normpath(base) != base or base == "/":
        raise CntrError(
            f"CNTR_BASE_DIR={printable(base)}: not a clean absolute path below /", f"for example {BASE_DIR}"
        )
    return base


def make_base_dir() -> None:
    """Create the host's /var/lib/cntr, as a package would; root does this once.

    Without it each session covers /var/lib with a stand-in (``places.make``), which takes 3 ms with 35 packages there.
    """
    if os.geteuid() == 0 and "CNTR_BASE_DIR" not in os.environ:
        try:
            os.mkdir(BASE_DIR, 0o755)
        except OSError:
            pass  # it exists, or the root is read-only: the session gets a stand-in
