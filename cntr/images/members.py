"""The members of a tar file, opened by name. One pass finds where each begins."""

from __future__ import annotations

import io
import os
import posixpath

from cntr.errors import printable
from cntr.images import ImageError, Limits, compression
from cntr.images.tar import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

LIMITS = Limits(entries=100_000)


class Members:
    """An index of a tar file, whose stream it owns. Opened members read by pread(2), so several can be read at once."""

    def __init__(self, stream: BinaryIO, what: str) -> None:
        """stream: a file with an fd; a compressed one is decompressed into an unnamed file. Raises ImageError."""
        self.what = what
        self._stream = _plain(stream, what)
        self._fd = self._stream.fileno()
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._index()
        except BaseException:
            self._stream.close()
            raise

    def _index(self) -> None:
        self._stream.seek(0)
        size = os.fstat(self._fd).st_size
        seeking = _Seeking(self._stream)
        reader = Reader(seeking, self.what, LIMITS)
        for entry in reader:
            name = posixpath.normpath(os.fsdecode(entry.name)).lstrip("/")
            if entry.kind == "file" and entry.parts is None:
                self._places[name] = (
                    self._stream.tell(),
                    entry.size,
                )  # of two members with one name the last one counts, as in tar
                if self._stream.tell() + entry.size > size:
                    raise reader.bad("ends in the middle")
                seeking.skip = entry.size
            elif entry.kind in ("symlink", "hardlink"):
                # `docker save` before version 25 links equal layers: ../ID/layer.tar
                base = posixpath.dirname(name) if entry.kind == "symlink" else ""
                self._links[name] = posixpath.normpath(posixpath.join(base, os.fsdecode(entry.link))).lstrip("/")

    def _place(self, name: str) -> tuple[int, int] | None:
        name = posixpath.normpath(name).lstrip("/")
        for _ in range(8):
            if name in self._places:
                return self._places[name]
            name = self._links.get(name, "")
        return None

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self._place(name) is not None

    def open(self, name: str) -> BinaryIO:
        """Open a member for reading. Raises ImageError."""
        place = self._place(name)
        if place is None:
            raise ImageError(f"{self.what}: {printable(name)} is not in it", "the archive is not whole: save it again")
        return io.BufferedReader(_Part(self._fd, *place), 1 << 18)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _plain(stream: BinaryIO, what: str) -> BinaryIO:
    """STREAM, or its decompressed content in an unnamed file. Raises ImageError."""
    head = os.pread(stream.fileno(), 6, 0)
    compressed = (compression.GZIP, compression.ZSTD, *compression.OTHERS)
    if not head.startswith(compressed):
        return stream
    import tempfile

    from cntr.images.unpacked import FREE_EVERY, check_disk

    result = tempfile.TemporaryFile(dir="/var/tmp", prefix="cntr-")  # noqa: SIM115  the caller's to close
    try:
        with compression.decompressed(stream, LIMITS, what) as source:
            checked = -FREE_EVERY
            while chunk := source.read(1 << 18):
                if result.tell() >= checked + FREE_EVERY:
                    checked = result.tell()
                    check_disk(result.fileno(), LIMITS.free + FREE_EVERY)
                result.write(chunk)
        result.flush()
        return result
    except BaseException:
        result.close()
        raise


class _Seeking:
    """A stream for the tar reader that seeks over data not wanted."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.skip = stream, 0

    def read(self, size: int) -> bytes:
        if self.skip >= size > 512:
            self.skip -= size
            self._stream.seek(size, os.SEEK_CUR)
            return bytes(size)
        self.skip = max(0, self.skip - size)
        return self._stream.read(size)


class _Part(io.RawIOBase):
    """LENGTH bytes of a file from OFFSET on."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd, self._position, self._end = os.dup(fd), offset, offset + length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._end - self._position)
        data = os.pread(self._fd, size, self._position) if size > 0 else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
            super().close()
