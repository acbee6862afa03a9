"""Decompresses a layer. Bytes are counted and hashed while reading, so reading to the end verifies the layer."""

from __future__ import annotations

import hashlib
import io
import os
import zlib

from cntr.engines import commands
from cntr.errors import printable
from cntr.images import ImageError, Layer, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

CHUNK = 1 << 18
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = bytes(range(0x50, 0x60))  # first byte of a skippable frame, before 2A 4D 18
OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
ZSTD_MEMORY = "--memory=128MB"  # a frame may request a window of terabytes


def open_layer(blob: BinaryIO, layer: Layer, limits: Limits) -> BinaryIO:
    """A buffered reader of the tar in BLOB, the layer as it is stored. Raises ImageError."""
    return io.BufferedReader(_Verified(blob, layer, limits), CHUNK)


def decompressed(blob: BinaryIO, limits: Limits, what: str) -> BinaryIO:
    """BLOB, decompressed where it is; nothing is verified."""
    return io.BufferedReader(_Verified(blob, Layer(), limits, what), CHUNK)


class _Verified(io.RawIOBase):
    """The decompressed stream; digests are compared at its end."""

    def __init__(self, blob: BinaryIO, layer: Layer, limits: Limits, what: str = "") -> None:
        self._blob, self._layer, self._limits = blob, layer, limits
        self._what = what or f"layer {printable(layer.digest or layer.diff_id)[:79]}"
        self._stored, self._content = _hash(layer.digest), _hash(layer.diff_id)
        self._read, self._given, self._ended = 0, 0, False
        try:
            head = self._take(CHUNK)
            self._decoder = self._choose(head)
            self._decoder.feed(head)
        except BaseException:
            blob.close()
            raise

    def readable(self) -> bool:
        """Always True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes; 0 at the end, after everything was verified."""
        if self._ended:
            return 0
        view = memoryview(buffer).cast("B")
        try:
            data = self._decoder.read(len(view), self._take)
        except zlib.error as error:
            raise ImageError(f"{self._what}: damaged: {error}", "pull or save the image again") from None
        if not data:
            self._finish()
            return 0
        self._given += len(data)
        if self._content:
            self._content.update(data)
        limits = self._limits
        if self._given > limits.total:
            raise ImageError(f"{self._what}: more than {limits.total} bytes", "the image is too large")
        if self._given > 512 << 20 and self._given > self._read * limits.ratio:
            raise ImageError(
                f"{self._what}: {self._read} bytes that unpack to more than {self._given}: a decompression bomb", ""
            )
        view[: len(data)] = data
        return len(data)

    def _take(self, size: int) -> bytes:
        data = self._blob.read(size)
        self._read += len(data)
        if self._layer.size >= 0 and self._read > self._layer.size:
            raise ImageError(f"{self._what}: longer than the {self._layer.size} bytes in its manifest", "")
        if self._stored:
            self._stored.update(data)
        return data

    def _choose(self, head: bytes) -> Any:
        if head.startswith(GZIP):
            return _Gzip(self._what)
        if head.startswith(ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[:1] in ZSTD_SKIPPABLE):
            return _Zstd(self._what)
        for magic, name in OTHERS.items():
            if head.startswith(magic):
                raise ImageError(f"{self._what}: compressed by {name}", "gzip, zstd and none are known")
        return _Plain()

    def _finish(self) -> None:
        self._ended = True
        while self._take(CHUNK):  # bytes after the end count for the digest
            pass
        if self._layer.size >= 0 and self._read != self._layer.size:
            raise ImageError(
                f"{self._what}: {self._read} bytes, {self._layer.size}according to its manifest",
                "pull or save the image again",
            )
        for digest, kind, hashed in (
            (self._layer.digest, "its digest", self._stored),
            (self._layer.diff_id, "its diff_id", self._content),
        ):
            if hashed and hashed.hexdigest() != digest.partition(":")[2]:
                found = f"{hashed.name}:{hashed.hexdigest()}"
                raise ImageError(
                    f"{self._what}: its content is {found}, {kind} is {printable(digest)[:79]}",
                    "pull or save the image again",
                )

    def close(self) -> None:
        """Close the blob and end the decompressor."""
        if not self.closed:
            try:
                decoder = getattr(self, "_decoder", None)
                if decoder:
                    decoder.close()
            finally:
                self._blob.close()
                super().close()


def _hash(digest: str) -> Any:
    """A hash object for ``sha256:…`` (or sha384, sha512, which OCI registers), None for "". Raises ImageError."""
    if not digest:
        return None
    name, _, value = digest.partition(":")
    sizes = {"sha256": 64, "sha384": 96, "sha512": 128}
    if sizes.get(name) != len(value) or not all(c in "0123456789abcdef" for c in value):
        raise ImageError(f"{printable(digest[:80])!r}: not a digest", "sha256:… with 64 hexadecimal digits")
    return hashlib.new(name)


class _Plain:
    """No compression."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> None:
        self._pending = data

    def read(self, size: int, take: Callable[[int], bytes]) -> bytes:
        if self._pending:
            data, self._pending = self._pending[:size], self._pending[size:]
            return data
        return take(size)

    def close(self) -> None:
        pass


class _Gzip:
    """RFC 1952: one or more members, then nothing or zero bytes. Decompresses no more than requested at once."""

    def __init__(self, what: str) -> None:
        self._what, self._pending, self._done = what, b"", False
        self._member = zlib.decompressobj(31)

    def feed(self, data: bytes) -> None:
        self._pending = data

    def read(self, size: int, take: Callable[[int], bytes]) -> bytes:
        while not self._done:
            if not self._pending:
                self._pending = take(CHUNK)
                if not self._pending:
                    raise ImageError(f"{self._what}: ends in the middle", "pull or save the image again")
            data = self._member.decompress(self._pending, size)
            self._pending = self._member.unconsumed_tail
            if self._member.eof:
                self._next_member(take)
            if data:
                return data
        return b""

    def _next_member(self, take: Callable[[int], bytes]) -> None:
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest:
            more = take(CHUNK)
            if not more:
                self._done = True
                return
            rest = more.lstrip(b"\0")
        self._pending, self._member = rest, zlib.decompressobj(31)

    def close(self) -> None:
        pass


class _Zstd:
    """Runs the program zstd, as nobody if we are root: a decoder written in C reads untrusted data."""

    def __init__(self, what: str) -> None:
        import subprocess

        self._what, self._head = what, b""
        self._feeder: Any = None
        self._error: BaseException | None = None
        identity: Any = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        program = "zstd" if os.geteuid() else commands.trusted("zstd") or "/nonexistent"
        try:
            self._process = subprocess.Popen(
                [program, "-dcq", ZSTD_MEMORY, "--no-progress"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
                cwd="/",
                **identity,
            )
        except FileNotFoundError:
            raise ImageError(f"{what}: compressed by zstd, which is not installed here", "install zstd") from None

    def feed(self, data: bytes) -> None:
        self._head = data

    def _start(self, take: Callable[[int], bytes]) -> None:
        import threading

        def pump() -> None:
            stdin = self._process.stdin
            assert stdin
            try:
                data = self._head
                while data:
                    stdin.write(data)
                    data = take(CHUNK)
            except BrokenPipeError:
                pass  # it has ended; its exit status tells why
            except BaseException as error:  # noqa: BLE001  raised where the stream is read
                self._error = error
            finally:
                try:
                    stdin.close()
                except OSError:
                    pass

        self._feeder = threading.Thread(target=pump, daemon=True)
        self._feeder.start()

    def read(self, size: int, take: Callable[[int], bytes]) -> bytes:
        if self._feeder is None:
            self._start(take)
        stdout = self._process.stdout
        assert stdout
        data: bytes = stdout.read1(size)  # type: ignore[attr-defined]
        if not data:
            self._feeder.join()
            if self._error:
                raise self._error
            if self._process.wait():
                raise ImageError(f"{self._what}: zstd cannot decompress it", "pull or save the image again")
        return data

    def close(self) -> None:
        self._process.kill()
        if self._process.stdout:
            self._process.stdout.close()
        self._process.wait()
        if self._feeder is not None:
            self._feeder.join()
        elif self._process.stdin:
            self._process.stdin.close()
