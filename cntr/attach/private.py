"""A session's own files: a tmpfs for /tmp, /run, its home and the written /etc files, and its own /dev.

Made before the fork as detached mounts, which ``Nest`` attaches. They hold nothing of the host's or the
container's.
"""

from __future__ import annotations

import os
import stat

from cntr.attach import places, steps
from cntr.errors import printable
from cntr.linux import attributes, syscalls

DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
# (directory in the tmpfs, where it is mounted, mode). Home directories are added.
DIRECTORIES = (
    ("tmp", "/tmp", 0o1777),
    ("var-tmp", "/var/tmp", 0o1777),
    ("root", "/root", 0o700),
    ("home", "/home", 0o755),
    ("shm", "/dev/shm", 0o1777),
)
KEPT = ("tmp", "var-tmp", "root", "home")  # where users leave files without thinking
LOOKED = 10_000
INFORMATION = "run/cntr"


class Private:
    """The session's own tmpfs. uid, gid: owner of the home, in the caller's ids; home, shares: paths in the session."""

    __slots__ = ("files", "home", "shares", "tree_fd")

    def __init__(self, home: str, uid: int, gid: int) -> None:
        """Raises OSError."""
        self.home = home
        self.files: list[str] = []
        self.shares: list[str] = []
        attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        self.tree_fd = syscalls.new_filesystem("tmpfs", {"mode": "755", "size": "25%", "nr_inodes": "200k"}, attributes)
        for name, _, mode in DIRECTORIES:
            self._directory(name, mode)
        for name, mode in (
            ("run", 0o755),
            (INFORMATION, 0o755),
            ("run/lock", 0o1777),
            ("run/user", 0o755),
            ("etc", 0o755),
        ):
            self._directory(name, mode)
        own = [f"run/user/{max(uid, 0)}", home.lstrip("/")]
        for name in own:
            if name != "root":
                self._directory(name, 0o700)
            try:
                os.chown(name, uid, gid, dir_fd=self.tree_fd)
            except OSError:
                # An id that cannot be expressed here; the session can still use the directory.
                os.chmod(name, 0o1777, dir_fd=self.tree_fd)

    def _directory(self, name: str, mode: int) -> None:
        os.mkdir(name, dir_fd=self.tree_fd)
        os.chmod(name, mode, dir_fd=self.tree_fd)

    def write(self, name: str, data: bytes) -> None:
        """Write a file that the session can read, and cannot change if it is in etc. NAME: as in ``etc/hosts``.
        Raises OSError.
        """
        for above in (name[:end] for end, char in enumerate(name) if char == "/"):
            try:
                os.mkdir(above, 0o755, dir_fd=self.tree_fd)
            except FileExistsError:
                pass
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self.tree_fd)
        try:
            os.fchmod(fd, 0o644)
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        if name.startswith("etc/"):
            self.files.append(name)

    def mount(self, progress: steps.Progress) -> None:
        """Mount all of it over the root of the calling process. Raises OSError; ``progress.now`` names the step."""
        progress.now = steps.PRIVATE
        # Only what is mounted in this namespace can be cloned, so the whole is mounted first.
        places.place(os.dup(self.tree_fd), "/run", is_dir=True, follow=True)
        for name, path, _ in DIRECTORIES:
            places.place(self._clone(name), path, is_dir=True, follow=True)
        progress.now = steps.ETC
        for name in self.files:
            tree = self._clone(name)
            attributes.add(tree, syscalls.MOUNT_ATTR_RDONLY)
            places.place(tree, f"/{name}", is_dir=False)
        progress.now = steps.PRIVATE
        run = self._clone("run")
        whole = places.open_inside("/run")
        os.fchdir(whole)
        os.close(whole)
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        places.place(run, "/run", is_dir=True, follow=True)

    def mount_files(self, progress: steps.Progress) -> None:
        """Mount the written files only, for a root that otherwise stays as it is. Raises OSError."""
        progress.now = steps.ETC
        place = places.open_inside("/")
        syscalls.move_mount(self.tree_fd, place, "")  # over the root; this process continues to see the old one
        os.close(place)
        for name in (*self.files, INFORMATION):
            is_dir = name == INFORMATION
            tree = self._clone(name)
            attributes.add(tree, syscalls.MOUNT_ATTR_RDONLY)
            places.place(tree, f"/{name}", is_dir=is_dir)
        os.fchdir(self.tree_fd)
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")

    def _clone(self, name: str) -> int:
        return syscalls.open_tree(self.tree_fd, name, syscalls.OPEN_TREE_CLONE)

    def let_through(self, shares: list[str]) -> None:
        """Let the session's user traverse /root to what is shared from there. shares: their paths."""
        self.shares = shares
        if self.home != "/root" and any(path.startswith("/root/") for path in shares):
            os.chmod("root", 0o711, dir_fd=self.tree_fd)

    def left_files(self) -> list[str]:
        """Paths of the first few files, among LOOKED names, that a session has left in its /tmp and its home, without dot files."""
        found: list[str] = []
        left, pending = LOOKED, [(name, path) for name, path, _ in DIRECTORIES if name in KEPT]
        while pending and len(found) < 5 and left > 0:
            name, path = pending.pop()
            try:
                fd = syscalls.openat2(
                    self.tree_fd,
                    name,
                    os.O_RDONLY | os.O_DIRECTORY,
                    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS,
                )
            except OSError:  # ENAMETOOLONG
                continue
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        left, child = left - 1, entry.name
                        if child.startswith(".") or left < 0:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((f"{name}/{child}", f"{path}/{child}"))
                        elif entry.is_file(follow_symlinks=False) and f"{path}/{child}" not in self.shares:
                            found.append(printable(f"{path}/{child}"))  # a file shared is mounted on one
            except OSError:
                continue
            finally:
                os.close(fd)
        return found

    def close(self) -> None:
        """Close the fd; the tmpfs goes with its last mount."""
        if self.tree_fd >= 0:
            os.close(self.tree_fd)
        self.tree_fd = -1


class Devices:
    """The session's /dev: the devices every program expects, and its own terminals; no device of the container or
    the host.
    """

    __slots__ = ("binds", "tree_fd")

    def __init__(self) -> None:
        """Raises OSError."""
        options: dict[str, str | int | None] = {"mode": "755", "size": "64k"}
        self.tree_fd = syscalls.new_filesystem(
            "tmpfs", options, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
        )
        self.binds: list[tuple[str, int]] = []
        for name in ("pts", "shm"):
            os.mkdir(name, 0o755, dir_fd=self.tree_fd)
        for name, target in LINKS:
            os.symlink(target, name, dir_fd=self.tree_fd)
        for name, major, minor in DEVICES:
            try:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=self.tree_fd)
                os.chmod(name, 0o666, dir_fd=self.tree_fd)
            except PermissionError:  # no CAP_MKNOD, or a tmpfs of a user namespace: bind mount the caller's device
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=self.tree_fd))
                self.binds.append(
                    (name, syscalls.open_tree(syscalls.AT_FDCWD, f"/dev/{name}", syscalls.OPEN_TREE_CLONE))
                )

    def mount(self, devpts_fd: int, progress: steps.Progress) -> None:
        """Mount it at /dev, and DEVPTS_FD at /dev/pts. Raises OSError."""
        progress.now = steps.DEVICES
        places.place(os.dup(self.tree_fd), "/dev", is_dir=True, follow=True)
        syscalls.move_mount(devpts_fd, self.tree_fd, "pts")
        for name, fd in self.binds:
            syscalls.move_mount(fd, self.tree_fd, name)
        # Otherwise a node made here later would be a device.
        attributes.add_here(self.tree_fd, syscalls.MOUNT_ATTR_RDONLY)

    def close(self) -> None:
        """Close every fd."""
        for fd in (self.tree_fd, *(fd for _, fd in self.binds)):
            if fd >= 0:
                os.close(fd)
        self.tree_fd, self.binds = -1, []
