"""Container images and containers that do not run: found, read, verified, unpacked, and stand-ins for them.

    image = images.find("image:web:1")          # Docker's, Podman's or containerd's; image:podman:web names the engine
    image = images.find("archive:web.tar")      # what `docker save`, `podman save` or `skopeo copy oci-archive:` wrote
    image = images.find("oci:layout")           # an OCI image layout directory; oci:DIR:TAG where it holds several
    image = images.find("dir:/srv/root")        # a root directory: no configuration, no layers
    with image:
        image.config                            # the OCI configuration's "config": Entrypoint, Cmd, Env, WorkingDir, User, …
        image.document                          # the whole configuration: architecture, os, rootfs, history
        image.layers                            # lowest first: digest, diff_id, directory (the engine's, or ""), open()
        image.lower_directories()               # overlayfs' lower directories, topmost first; [] where nobody unpacked it
        image.unpack(directory_fd)              # the whole tree into an empty directory, verified by digest

``layer.open()`` gives the layer's tar, decompressed; reading it to its end verifies both digests. A layer of an engine's store that
has only a directory has no tar: ``image.with_blobs()`` is the same image with one (Docker and Podman write it, `docker save`).
Nothing an image says is believed: sizes, counts, names and links are bounded (``Limits``), and what does not fit is an ImageError.
The standard library does it all; layers compressed by zstd need the program zstd (Debian: zstd).
"""

from __future__ import annotations

from cntr.errors import CntrError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

    from cntr.images.unpacked import Unpacked

KINDS = ("image", "archive", "oci", "dir")
ENGINES = ("docker", "podman", "containerd")
ID_HEX = frozenset("0123456789abcdef")


class ImageError(CntrError):
    """The image does not exist, cannot be read, or does not match its digests."""


class Limits:
    """Limits for an image: entries of all its layers, bytes of files, bytes of a JSON document, bytes of a header's
    extension.
    """

    __slots__ = ("document", "entries", "extension", "file", "free", "names", "ratio", "total")

    def __init__(
        self,
        *,
        entries: int = 1_000_000,
        total: int = 64 << 30,
        file: int = 1 << 40,
        document: int = 8 << 20,
        extension: int = 1 << 20,
        ratio: int = 250,
        free: int = 256 << 20,
        names: int = 256 << 20,
    ) -> None:
        """file: length of a sparse file; ratio: a layer's content to its compressed size; free: bytes to leave on the
        disk.
        """
        self.entries, self.total, self.file, self.document = entries, total, file, document
        self.extension, self.ratio, self.free, self.names = extension, ratio, free, names


class Layer:
    """One layer: digest of the blob as stored, diff_id of its tar, the engine's directory of it; each "" if unknown."""

    __slots__ = ("_opener", "diff_id", "digest", "directory", "media_type", "size")

    def __init__(
        self,
        *,
        digest: str = "",
        diff_id: str = "",
        media_type: str = "",
        size: int = -1,
        directory: str = "",
        opener: Callable[[], BinaryIO] | None = None,
    ) -> None:
        """size: of the blob in bytes, -1 if unknown; opener: opens the blob."""
        self.digest, self.diff_id, self.media_type, self.size = digest, diff_id, media_type, size
        self.directory, self._opener = directory, opener

    @property
    def has_blob(self) -> bool:
        """Whether ``open`` can read it."""
        return self._opener is not None

    def open(self, limits: Limits | None = None) -> BinaryIO:
        """Open the layer's tar, decompressed; both digests are verified at its end. Raises ImageError, also while
        reading.
        """
        from cntr.images import compression

        if self._opener is None:
            raise ImageError(
                f"layer {self.digest or self.diff_id or self.directory}: no archive of it", "image.with_blobs()"
            )
        return compression.open_layer(self._opener(), self, limits or Limits())


class Image:
    """One image; see the module. A context manager: leaving it closes the image's files."""

    def __init__(
        self,
        reference: str,
        engine: str,
        id: str,
        document: dict[str, Any],
        layers: list[Layer],
        *,
        lower: list[str] | None = None,
        blobs: Callable[[], Image] | None = None,
        close: Callable[[], None] | None = None,
        owner: int = 0,
    ) -> None:
        """reference: as the user named it; engine: docker, podman, containerd, archive, oci, dir; id: the digest of its
        document.

        lower: overlayfs' lower directories, topmost first; blobs: returns the same image with readable layers; owner:
        whose store.
        """
        self.reference, self.engine, self.id, self.document, self.layers = reference, engine, id, document, layers
        self.owner, self._lower, self._blobs, self._close = owner, lower or [], blobs, close
        config = document.get("config")
        self.config: dict[str, Any] = config if isinstance(config, dict) else {}

    def label(self) -> str:
        """The name used in error messages."""
        return printable(f"{self.engine if self.engine in KINDS else 'image'}:{self.reference}")

    def lower_directories(self) -> list[str]:
        """overlayfs' lower directories, topmost first; [] if its store has not unpacked it."""
        return list(self._lower)

    def with_blobs(self) -> Image:
        """An image whose layers can all be opened: this one, or one saved by its engine. Raises ImageError."""
        if all(layer.has_blob for layer in self.layers) or self._blobs is None:
            return self
        return self._blobs()

    def unpack(self, directory_fd: int, *, limits: Limits | None = None, devices: bool = False) -> Unpacked:
        """Unpack all layers into the empty directory behind DIRECTORY_FD, verified.

        Raises ImageError; the caller then removes the content. devices: also make device nodes; otherwise they are
        counted and left out.
        """
        from cntr.images import unpack

        if self.engine == "dir":
            raise ImageError(f"{self.label()}: a directory has no layers to unpack", "use it as it is")
        with self.with_blobs() as source:
            return unpack.unpack(source, directory_fd, limits or Limits(), devices=devices)

    def close(self) -> None:
        """Close the image's files."""
        if self._close:
            self._close()
            self._close = None

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_reference(text: str) -> bool:
    """Whether TEXT has one of the image prefixes (``image:``, ``archive:``, ``oci:``, ``dir:``)."""
    kind, colon, _ = text.partition(":")
    return bool(colon) and kind in KINDS


def find(reference: str, *, seconds: float = 10.0) -> Image:
    """The image REFERENCE (see the module); without a prefix ``image:`` is assumed. Raises ImageError, AmbiguousTarget."""
    kind, colon, rest = reference.partition(":")
    if not colon or kind not in KINDS:
        kind, rest = "image", reference
    if not rest or "\0" in rest or len(rest) > 4096:
        raise ImageError(
            f"{printable(reference[:60])!r}: not an image's name", "image:NAME, archive:FILE, oci:DIR or dir:PATH"
        )
    if kind == "archive":
        from cntr.images import archive

        return archive.open_archive(rest)
    if kind == "oci":
        from cntr.images import archive

        return archive.open_layout(rest)
    if kind == "dir":
        from cntr.images import archive

        return archive.open_directory(rest)
    from cntr.images import stores

    return stores.find(rest, seconds)
