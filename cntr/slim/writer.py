"""Writes a layer as a reproducible tar, and one archive that is both a Docker and an OCI archive.

A layer keeps what tar(5) can express: numeric owners, modes with set-id bits, whole seconds, hard links, devices,
FIFOs, extended attributes (file capabilities, ACLs, user.*), holes, names of any bytes and length. A tar cannot contain
sockets.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor

from cntr.errors import CntrError
from cntr.linux import syscalls
from cntr.progress import Progress
from cntr.slim.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from typing import IO, Any

# Bytes; each chunk is a gzip member, so processors share the work and the result does not depend on their number.
CHUNK = 4 << 20
_UNKEPT = ("trusted.", "user.overlay.", "system.nfs4", "security.selinux", "security.ima", "security.evm")
_O_PATH = os.O_PATH | os.O_NOFOLLOW
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
MEDIA = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


class Blob:
    """A file named by its digest. diff_id: for a layer, the digest before compression; sizes in bytes."""

    def __init__(self, path: str, digest: str, size: int, diff_id: str = "", raw: int = 0) -> None:
        self.path, self.digest, self.size, self.diff_id, self.raw = path, digest, size, diff_id, raw


class _Compressed(io.RawIOBase):
    """A stream that hashes its input, compresses it in chunks on several threads, and writes and hashes the result."""

    def __init__(self, target: IO[bytes], compression: str) -> None:
        super().__init__()
        from collections import deque

        self.target, self.compress, self.progress = target, _compressor(compression), Progress("writing the layer: ")
        self.raw, self.packed = hashlib.sha256(), hashlib.sha256()
        self.raw_size = self.packed_size = 0
        self._buffer = bytearray()
        self._pool = ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)))
        self._waiting: deque[Future[bytes]] = deque()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            self._submit(bytes(self._buffer[:CHUNK]))
            del self._buffer[:CHUNK]
        return len(data)

    def _submit(self, chunk: bytes) -> None:
        self.raw.update(chunk)
        self.raw_size += len(chunk)
        self.progress.moved(len(chunk))
        self._waiting.append(self._pool.submit(self.compress, chunk))
        while len(self._waiting) > 8:
            self._take()

    def _take(self) -> None:
        packed = self._waiting.popleft().result()
        self.packed.update(packed)
        self.packed_size += len(packed)
        self.target.write(packed)

    def finish(self) -> None:
        if self._buffer or not self.raw_size:
            self._submit(bytes(self._buffer))
        while self._waiting:
            self._take()
        self._pool.shutdown()
        self.progress.clear()


def _compressor(name: str) -> Callable[[bytes], bytes]:
    if name == "none":
        return lambda data: data
    if name == "zstd":
        try:
            import zstandard
        except ImportError:
            raise CntrError(
                "--compress zstd: the Python package zstandard is not installed", "pip install 'cntr-attach[slim]'"
            ) from None
        return lambda data: bytes(zstandard.ZstdCompressor(level=9).compress(data))

    def gzip(data: bytes) -> bytes:
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: a gzip header, with time 0
        return packer.compress(data) + packer.flush()

    return gzip


def layer(tree: Tree, paths: Iterable[str], replaced: dict[str, bytes], directory: str, compression: str) -> Blob:
    """The layer of PATHS of TREE as a blob in DIRECTORY. replaced: path → new content of a file."""
    temporary = os.path.join(directory, "layer")
    with open(temporary, "wb") as target:
        stream = _Compressed(target, compression)
        write_tar(tree, paths, replaced, stream)
        stream.finish()
    return _named(temporary, directory, stream)


def _named(temporary: str, directory: str, stream: _Compressed) -> Blob:
    digest = stream.packed.hexdigest()
    path = os.path.join(directory, digest)
    os.replace(temporary, path)
    return Blob(path, digest, stream.packed_size, stream.raw.hexdigest(), stream.raw_size)


def write_tar(tree: Tree, paths: Iterable[str], replaced: dict[str, bytes], stream: io.RawIOBase) -> None:
    """Write PATHS as a tar, each directory before its contents, the first name of a hard link before the others."""
    first: dict[tuple[int, int], str] = {}
    there = sorted(paths, key=lambda path: path.split("/"))
    # No archive holds the root's own time: it is that of unpacking.
    newest = max((tree.entries[path].mtime for path in there if path.count("/") == 1 and path != "/"), default=0)
    with tarfile.open(
        fileobj=stream,
        mode="w|",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
        bufsize=1 << 20,
    ) as tar:
        for path in there:
            entry = tree.entries[path]
            info = tarfile.TarInfo(path.strip("/") or ".")
            info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(entry.mode), entry.uid, entry.gid, entry.mtime
            if path == "/":
                info.mtime = newest
            if not entry.is_directory and entry.nlink > 1:
                name = first.setdefault((entry.dev, entry.ino), path)
                if name != path:
                    info.type, info.linkname = tarfile.LNKTYPE, name.lstrip("/")
                    tar.addfile(info)
                    continue
            _add(tar, tree, path, info, replaced)


def _add(tar: tarfile.TarFile, tree: Tree, path: str, info: tarfile.TarInfo, replaced: dict[str, bytes]) -> None:
    entry = tree.entries[path]
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFSOCK:
        return
    info.pax_headers = attributes(tree, path)
    if kind == stat.S_IFLNK:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    elif kind == stat.S_IFDIR:
        info.type = tarfile.DIRTYPE
    elif kind == stat.S_IFIFO:
        info.type = tarfile.FIFOTYPE
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(entry.rdev), os.minor(entry.rdev)
    if kind != stat.S_IFREG:
        tar.addfile(info)
    elif path in replaced:
        info.size = len(replaced[path])
        tar.addfile(info, io.BytesIO(replaced[path]))
    else:
        _add_file(tar, tree.open(path), info)


def _add_file(tar: tarfile.TarFile, fd: int, info: tarfile.TarInfo) -> None:
    with open(fd, "rb", buffering=0) as source:
        st = os.fstat(fd)
        info.size = st.st_size
        parts = _data(fd, st.st_size) if st.st_blocks * 512 < st.st_size and st.st_size > 1 << 16 else None
        if parts is None or sum(length for _, length in parts) > st.st_size * 3 // 4:
            tar.addfile(info, source)
            return
        # GNU's sparse format 1.0 in PAX: the member's data starts with the map. Go's reader supports it, hence every
        # engine.
        lines = [str(len(parts)), *(str(number) for part in parts for number in part)]
        table = "\n".join((*lines, "")).encode()
        table += bytes(-len(table) % 512)
        info.pax_headers = dict(info.pax_headers) | dict(
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": info.name}
            | {"GNU.sparse.realsize": str(st.st_size)}
        )
        info.size = len(table) + sum(length for _, length in parts)
        head, _, name = info.name.rpartition("/")
        info.name = f"{head}/GNUSparseFile.0/{name}".lstrip("/")
        tar.addfile(info, _Parts(source, table, parts))  # type: ignore[arg-type]


class _Parts:
    """A stream of the sparse map, then of the parts with data."""

    def __init__(self, source: IO[bytes], table: bytes, parts: list[tuple[int, int]]) -> None:
        self.source, self.table, self.parts = source, table, list(parts)

    def read(self, size: int) -> bytes:
        """Read SIZE bytes, fewer only at the end."""
        found = bytearray(self.table[:size])
        self.table = self.table[size:]
        while len(found) < size and self.parts:
            offset, length = self.parts[0]
            data = os.pread(self.source.fileno(), min(length, size - len(found)), offset)
            if not data:
                break
            found += data
            if len(data) == length:
                self.parts.pop(0)
            else:
                self.parts[0] = offset + len(data), length - len(data)
        return bytes(found)


def _data(fd: int, size: int) -> list[tuple[int, int]] | None:
    """The (offset, length) of the data; a last entry of length 0 marks the end. None if the filesystem does not tell."""
    parts, position = [], 0
    try:
        while position < size:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == 6:  # ENXIO: only a hole follows
                    break
                return None
            position = os.lseek(fd, start, os.SEEK_HOLE)
            parts.append((start, position - start))
    finally:
        os.lseek(fd, 0, os.SEEK_SET)
    if not parts or sum(parts[-1]) < size:
        parts.append((size, 0))
    return parts


def attributes(tree: Tree, path: str) -> dict[str, str]:
    """The extended attributes as PAX records; undecodable bytes as surrogates."""
    fd = syscalls.openat2(tree.root_fd, path.lstrip("/") or ".", _O_PATH, _BENEATH)
    try:
        where = f"/proc/self/fd/{fd}"
        names = os.listxattr(where)
        return {
            f"SCHILY.xattr.{name}": os.fsdecode(os.getxattr(where, name))
            for name in sorted(names)
            if not name.startswith(_UNKEPT)
        }
    except OSError:
        return {}  # the filesystem has none
    finally:
        os.close(fd)


# --- the archive -------------------------------------------------------------------------------------------------------


def text_blob(value: object, directory: str) -> Blob:
    """VALUE as JSON, sorted and without spaces."""
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    path = os.path.join(directory, digest)
    with open(path, "wb") as stream:
        stream.write(data)
    return Blob(path, digest, len(data))


class Archive:
    """An image as blobs in a directory, which can be written as one tar, under any name."""

    def __init__(self, directory: str, config: dict[str, Any], layers: list[Blob], compression: str) -> None:
        """config: the image configuration (OCI image-spec) without its rootfs."""
        whole = {**config, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]}}
        self.layers = layers
        self.config = text_blob(whole, directory)
        media = "application/vnd.oci.image"
        self.manifest = text_blob(
            {
                "schemaVersion": 2,
                "mediaType": f"{media}.manifest.v1+json",
                "config": _descriptor(self.config, f"{media}.config.v1+json"),
                "layers": [_descriptor(one, f"{media}.layer.v1.tar{MEDIA[compression]}") for one in layers],
            },
            directory,
        )

    @property
    def id(self) -> str:
        """The image's id, as Docker and Podman name it."""
        return self.config.digest

    def write(self, stream: IO[bytes], reference: str) -> None:
        """Write the tar; reference: the image's name and tag, "" for none."""
        described: dict[str, Any] = _descriptor(self.manifest, "application/vnd.oci.image.manifest.v1+json")
        if reference:
            described["annotations"] = {
                "io.containerd.image.name": full(reference),
                "org.opencontainers.image.ref.name": full(reference),
            }
        blobs = {blob.digest: blob for blob in (self.config, self.manifest, *self.layers)}
        docker = {
            "Config": f"blobs/sha256/{self.config.digest}",
            "RepoTags": [reference] if reference else None,
            "Layers": [f"blobs/sha256/{blob.digest}" for blob in self.layers],
        }
        texts = {
            "index.json": {"schemaVersion": 2, "manifests": [described]},
            "manifest.json": [docker],
            "oci-layout": {"imageLayoutVersion": "1.0.0"},
        }
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name in ("blobs", "blobs/sha256"):
                info = tarfile.TarInfo(name)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            for digest in sorted(blobs):
                info = tarfile.TarInfo(f"blobs/sha256/{digest}")
                info.size, info.mode = blobs[digest].size, 0o644
                with open(blobs[digest].path, "rb") as source:
                    tar.addfile(info, source)
            for name, value in texts.items():
                data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))


def _descriptor(blob: Blob, media: str) -> dict[str, Any]:
    return {"mediaType": media, "digest": f"sha256:{blob.digest}", "size": blob.size}


def full(reference: str) -> str:
    """The full reference that a short one means to Docker: registry, repository and tag."""
    name, slash, rest = reference.partition("/")
    if not slash:
        reference = f"docker.io/library/{reference}"
    elif "." not in name and ":" not in name and name != "localhost":
        reference = f"docker.io/{name}/{rest}"
    return reference if ":" in reference.rpartition("/")[2] else f"{reference}:latest"
