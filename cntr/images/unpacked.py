"""The progress of unpacking an image, and a line about it if it takes long."""

from __future__ import annotations

from cntr.progress import Progress


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
