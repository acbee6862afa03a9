"""The progress of unpacking an image, and a line about it if it takes long."""

from __future__ import annotations

import os

from cntr.images import ImageError
from cntr.progress import Progress

FREE_EVERY = 64 << 20  # bytes written between two checks of free space


def check_disk(fd: int, size: int) -> None:
    """Raise ImageError if the file system of FD has no room for SIZE bytes."""
    free = os.fstatvfs(fd)
    if free.f_bavail * free.f_frsize < size:
        raise ImageError("unpack: the disk is nearly full", "free some space, or `cntr cache clear`")


class Unpacked:
    """Counts: entries read, files and bytes written, devices and xattrs left out. A scope: leaving it erases the
    progress line.
    """

    __slots__ = ("bytes", "devices", "entries", "files", "progress", "xattrs")

    def __init__(self, image: str) -> None:
        self.entries = self.files = self.bytes = self.devices = self.xattrs = 0
        self.progress = Progress(f"unpacking {image}: ")

    def wrote(self, count: int) -> None:
        """Add COUNT bytes."""
        self.bytes += count
        self.progress.moved(count)

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.clear()
