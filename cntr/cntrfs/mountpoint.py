"""Where a file system is mounted: on what was opened, and what is unmounted is what was mounted.

The path may lead through a directory of a user's, who can put a link to another directory there, such as /etc, at any time.
"""

from __future__ import annotations

import os
import stat

from cntr.errors import CntrError, printable
from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

UMOUNT_NOFOLLOW = 8  # umount(2)
LINKS = 40  # as many as the kernel follows (path_resolution(7))


class Mountpoint:
    """An open directory. path: its real path; mount_id, device: of what was mounted on it, 0 before."""

    __slots__ = ("device", "fd", "mount_id", "path")

    def __init__(self, path: str) -> None:
        """Raises CntrError."""
        self.path, self.mount_id, self.device = os.path.realpath(path), 0, 0
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            self.fd = syscalls.openat2(syscalls.AT_FDCWD, self.path, flags, syscalls.RESOLVE_NO_SYMLINKS)
        except OSError:
            raise CntrError(
                f"not a directory: {printable(self.path)}", "SOURCE and MOUNTPOINT are existing directories"
            ) from None
        owner = os.fstat(self.fd).st_uid
        for user in _owners_of_links(os.path.abspath(path)):
            if user not in (0, os.geteuid(), owner):
                os.close(self.fd)
                raise CntrError(
                    f"{printable(path)}: by a link of uid {user}'s that is {printable(self.path)}",
                    "name that directory itself if it is meant",
                )

    def mount(self, mount: Callable[[str], None], fstype: str) -> None:
        """Call MOUNT with a path that means this directory. Raises OSError."""
        mount(f"/proc/self/fd/{self.fd}")
        here = os.readlink(f"/proc/self/fd/{self.fd}")  # its directory may have been renamed
        for row in reversed(_mounts()):
            if (row.mount_point, row.fstype) == (here, fstype):
                self.mount_id, self.device = row.mount_id, row.device
                return

    def unmount(self, flags: int) -> bool:
        """Return whether it is gone, or covered by another mount. flags: of umount2(2)."""
        row = next((one for one in _mounts() if (one.mount_id, one.device) == (self.mount_id, self.device)), None)
        if row is None:
            return True
        above, name = os.path.split(row.mount_point)
        try:
            parent = syscalls.openat2(
                syscalls.AT_FDCWD, above, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS
            )
        except OSError:
            return False
        try:
            if _mount_id(parent, name) == self.mount_id:  # a mount point is not renamed, so it stays that (rename(2))
                syscalls.umount(f"/proc/self/fd/{parent}/{name}", flags | UMOUNT_NOFOLLOW)
            return True
        except OSError:
            return False
        finally:
            os.close(parent)


def _mounts() -> list[procfs.Mount]:
    return procfs.mountinfo(procfs.read("/proc/self/mountinfo"))


def _mount_id(parent: int, name: str) -> int:
    """Which mount NAME in a directory belongs to, without a request to its server (proc_pid_fdinfo(5)). Raises OSError."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return int(procfs.status(procfs.read(f"/proc/self/fdinfo/{fd}"))["mnt_id"])
    finally:
        os.close(fd)


def _owners_of_links(path: str) -> list[int]:
    """The owners of the symbolic links on the way to PATH."""
    found: list[int] = []
    at, pending = "", path.split("/")[::-1]
    while pending and len(found) < LINKS:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        try:
            status = os.lstat(f"{at}/{name}")
            target = os.readlink(f"{at}/{name}") if stat.S_ISLNK(status.st_mode) else ""
        except OSError:
            break
        if not target:
            at = f"{at}/{name}"
            continue
        found.append(status.st_uid)
        at = "" if target.startswith("/") else at
        pending += target.split("/")[::-1]
    return found
