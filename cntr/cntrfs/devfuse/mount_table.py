"""Where something is mounted in the served tree's mount namespace, which may be another container's, and what has changed since."""

from __future__ import annotations

import contextlib
import os

from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class MountTable:
    """An open mountinfo: it stays that namespace's when the process it was found by has ended, and poll(2) tells of changes."""

    def __init__(self, mount_id: int) -> None:
        """mount_id: of the mount that the tree's root is on. Where no process has it (a private copy), this one's table."""
        self._where = _found_by(mount_id)
        self.fd, self.root_fd = self._opened()
        try:
            self.points = self._read()
        except BaseException:
            self.close()
            raise

    def _opened(self) -> tuple[int, int]:
        fd = os.open(f"{self._where}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return fd, os.open(f"{self._where}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise

    def _read(self) -> set[bytes]:
        text = b""
        while len(text) < procfs.LIMIT and (chunk := os.pread(self.fd, 1 << 16, len(text))):
            text += chunk
        return {os.fsencode(mount.mount_point) for mount in procfs.mountinfo(os.fsdecode(text))}

    def changed(self) -> Iterator[tuple[int, bytes]]:
        """(O_PATH fd of a directory, valid until the next; name) of each place where something was mounted or unmounted."""
        before, self.points = self.points, self._read()
        for path in before ^ self.points:
            directory, _, name = path.rstrip(b"/").rpartition(b"/")
            try:
                # A container's own links must not lead out of its root.
                fd = syscalls.openat2(
                    self.root_fd, directory or b"/", os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_IN_ROOT
                )
            except OSError:
                continue
            try:
                yield fd, name
            finally:
                os.close(fd)

    def close(self) -> None:
        """Close its fds."""
        os.close(self.fd)
        os.close(self.root_fd)


def _found_by(mount_id: int) -> str:
    """The directory in /proc of a process whose mountinfo has the mount, or /proc/self."""
    seen = set()
    for pid in ("self", *filter(str.isdigit, os.listdir("/proc"))):
        where = f"/proc/{pid}"
        with contextlib.suppress(OSError):
            namespace = os.stat(f"{where}/ns/mnt").st_ino
            if namespace not in seen:
                seen.add(namespace)
                if any(mount.mount_id == mount_id for mount in procfs.mountinfo(procfs.read(f"{where}/mountinfo"))):
                    return where
    return "/proc/self"
