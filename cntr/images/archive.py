"""Images in files: archives of `docker save` (manifest.json), OCI layouts (index.json) as a directory or a tar, root
directories.
"""

from __future__ import annotations

import hashlib
import os
import stat

from cntr.engines import store
from cntr.errors import printable
from cntr.images import Image, ImageError, Layer, Limits
from cntr.linux import opened, syscalls
from cntr.linux.numbers import UNAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO, Protocol

    class Files(Protocol):
        """Access to an image's files."""

        what: str

        def open(self, name: str) -> BinaryIO:
            """Open a file for reading. Raises ImageError."""

        def has(self, name: str) -> bool:
            """Whether there is a file of that name."""

        def close(self) -> None:
            """Close it."""


INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MACHINES = {
    **{"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm", "armv6l": "arm"},
    **{"ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "loongarch64": "loong64"},
}
BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS
ONE_OF_SEVERAL = "`oci:DIR:TAG`, `archive:FILE:TAG` names one"
REF_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
CONFIGURATIONS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


def open_archive(path: str) -> Image:
    """The image in a tar file, compressed or not, FILE or FILE:TAG. Raises ImageError."""
    file, tag = path, ""
    for at in [] if os.path.exists(path) else [at for at, letter in enumerate(path) if letter == ":"]:
        if os.path.isfile(path[:at]):
            file, tag = path[:at], path[at + 1 :]
            break
    stream = _open_regular(file)
    return archive_of(stream, _place(stream.fileno(), f"archive:{file}"), tag)


def archive_of(stream: BinaryIO, reference: str, tag: str = "") -> Image:
    """The image in the tar STREAM, which it owns; tag: needed if there are several. Raises ImageError."""
    from cntr.images.members import Members

    members = Members(stream, f"archive {printable(reference)}")
    try:
        return _read(members, "archive", f"{reference}:{tag}" if tag else reference, tag)
    except BaseException:
        members.close()
        raise


def open_layout(path: str) -> Image:
    """The image in an OCI layout directory, DIR or DIR:TAG. Raises ImageError."""
    tag = ""
    if not os.path.isdir(path) and ":" in path:
        path, _, tag = path.rpartition(":")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(
            f"oci:{printable(path)}: {error.strerror}", "give the directory that holds index.json"
        ) from None
    layout = _Layout(fd, f"oci:{printable(path)}")
    try:
        return _read(layout, "oci", _place(fd, f"oci:{path}"), tag)
    except BaseException:
        layout.close()
        raise


def open_directory(path: str) -> Image:
    """A root directory as an image without configuration. Raises ImageError."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise ImageError(
            f"dir:{printable(path)}: no such directory", "give the root directory of a file system"
        ) from None
    try:
        place = _place(fd, f"dir:{path}")
    finally:
        os.close(fd)
    return Image(place, "dir", "", {}, [Layer(directory=place)], lower=[place])


def _place(fd: int, what: str) -> str:
    """The path that was opened, for the policy: links in it may lead elsewhere by then. Raises ImageError."""
    place = opened.place_of(fd)
    if not place:
        raise ImageError(
            f"{printable(what)}: it is at no path here", "name a file or directory of this mount namespace"
        )
    return place


def _open_regular(path: str) -> BinaryIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise ImageError(
            f"archive:{printable(path)}: {error.strerror}", "give a file that `docker save` wrote"
        ) from None
    return _as_file(fd, f"archive:{printable(path)}", "give a file that `docker save` wrote")


def _as_file(fd: int, what: str, hint: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{what}: not a regular file", hint)
    return os.fdopen(fd, "rb")


class _Layout:
    """The files of a layout directory."""

    def __init__(self, fd: int, what: str) -> None:
        self.fd, self.what = fd, what

    def open(self, name: str) -> BinaryIO:
        """Open a file below the directory; no symbolic link is followed. Raises ImageError."""
        try:
            fd = syscalls.openat2(self.fd, name, os.O_RDONLY | os.O_NONBLOCK, BENEATH)
        except OSError as error:
            raise ImageError(
                f"{self.what}: {printable(name)}: {os.strerror(error.errno or 0)}", "is it whole?"
            ) from None
        return _as_file(fd, f"{self.what}: {printable(name)}", "")

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            os.close(syscalls.openat2(self.fd, name, os.O_PATH, BENEATH))
            return True
        except OSError:
            return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _read(files: Files, engine: str, reference: str, tag: str) -> Image:
    """The one image in FILES. index.json is preferred: its manifest has the layers' digests."""
    if files.has("index.json"):
        manifest = _manifest(files, _object(files, "index.json"), tag)
        return read_manifest(files, manifest, engine, reference)
    if files.has("manifest.json"):
        return _docker(files, engine, reference, tag)
    raise ImageError(f"{files.what}: neither index.json nor manifest.json", "not an image that was saved")


def document(files: Files, name: str, limit: int = Limits().document) -> tuple[bytes, Any]:
    """A JSON file: its bytes and its value. Raises ImageError."""
    with files.open(name) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ImageError(f"{files.what}: {printable(name)}: larger than {limit} bytes", "no image needs that")
    try:
        return data, store.parse(data.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise ImageError(f"{files.what}: {printable(name)}: {printable(str(error))}", "the image is damaged") from None


def _object(files: Files, name: str) -> dict[str, Any]:
    value = document(files, name)[1]
    if not isinstance(value, dict):
        raise ImageError(f"{files.what}: {printable(name)}: not a JSON object", "the image is damaged")
    return value


def blob_name(digest: object) -> str:
    """The name blobs/ALGORITHM/HEX for a digest. Raises ImageError if it is malformed."""
    algorithm, _, value = str(digest).partition(":")
    if algorithm not in ("sha256", "sha384", "sha512") or not value or not set(value) <= set("0123456789abcdef"):
        raise ImageError(f"{printable(str(digest)[:80])!r}: not a digest", "the image is damaged")
    return f"blobs/{algorithm}/{value}"


def blob(files: Files, descriptor: Any) -> dict[str, Any]:
    """The JSON object that a descriptor refers to, verified. Raises ImageError."""
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else descriptor
    name = blob_name(digest)
    data, value = document(files, name)
    algorithm, _, wanted = str(digest).partition(":")
    found = hashlib.new(algorithm, data).hexdigest()
    if found != wanted:
        raise ImageError(f"{files.what}: {name}: its content is {algorithm}:{found}", "pull or save the image again")
    if not isinstance(value, dict):
        raise ImageError(f"{files.what}: {name}: not a JSON object", "the image is damaged")
    return value


def _manifest(files: Files, index: dict[str, Any], tag: str, depth: int = 0) -> dict[str, Any]:
    """The manifest for this machine in an index; tag selects one of several images."""
    listed = index.get("manifests")
    rows = [row for row in (listed if isinstance(listed, list) else ()) if isinstance(row, dict) and "digest" in row]
    if tag:
        rows = [row for row in rows if any(_names(row.get("annotations"), key, tag) for key in REF_NAMES)]
    fitting = [row for row in rows if _fits(row.get("platform"))] or rows
    fitting = list({str(row["digest"]): row for row in fitting}.values())
    if not fitting:
        raise ImageError(f"{files.what}: no image{f' {printable(tag)}' if tag else ''} in it", ONE_OF_SEVERAL)
    if len(fitting) > 1 and depth == 0:
        raise _several(files, [_name(row) for row in fitting])
    found = blob(files, fitting[0])
    if "manifests" in found and "layers" not in found:
        if depth > 3:
            raise ImageError(f"{files.what}: an index within an index, without end", "the image is damaged")
        return _manifest(files, found, "", depth + 1)
    return found


def _several(files: Files, names: list[str]) -> ImageError:
    return ImageError(f"{files.what}: {len(names)} images: {printable(', '.join(names[:8]))}", ONE_OF_SEVERAL)


def _name(row: dict[str, Any]) -> str:
    """The name of an image in an index. Docker's archives have only the tag as ref.name."""
    annotations = row.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    return next((str(annotations[key]) for key in reversed(REF_NAMES) if key in annotations), str(row["digest"]))


def _names(annotations: object, key: str, tag: str) -> bool:
    value = str(annotations.get(key, "")) if isinstance(annotations, dict) else ""
    return answers_to(tag, value)


def answers_to(tag: str, name: str) -> bool:
    """Whether TAG is NAME, its last component (app:1 for localhost/app:1), or the part after its colon."""
    return tag in (name, name.rpartition("/")[2], name.rpartition(":")[2])


def _fits(platform: object) -> bool:
    if not isinstance(platform, dict):
        return True
    machine = MACHINES.get(UNAME, UNAME)
    return bool(platform.get("os", "linux") == "linux" and platform.get("architecture", machine) == machine)


def read_manifest(files: Files, manifest: dict[str, Any], engine: str, reference: str) -> Image:
    """The image of an OCI or Docker (version 2, schema 2) manifest. Raises ImageError."""
    description = manifest.get("config")
    rows = manifest.get("layers")
    if (
        not isinstance(description, dict)
        or not isinstance(rows, list)
        or not all(isinstance(row, dict) for row in rows)
    ):
        raise ImageError(
            f"{files.what}: its manifest names no configuration and layers", "schema 1 images are not known"
        )
    kind = description.get("mediaType") or manifest.get("artifactType")
    if kind and kind not in CONFIGURATIONS:
        raise ImageError(f"{files.what}: an artifact ({printable(str(kind)[:100])}), not a container's image", "")
    configuration = blob(files, description)
    diff_ids = _diff_ids(configuration, len(rows), files.what)
    layers = []
    for row, diff_id in zip(rows, diff_ids):
        name, size = blob_name(row.get("digest")), row.get("size", -1)
        layers.append(
            Layer(
                digest=str(row["digest"]),
                diff_id=diff_id,
                media_type=str(row.get("mediaType", "")),
                size=size if isinstance(size, int) else -1,
                opener=_opener(files, name),
            )
        )
    return Image(reference, engine, str(description.get("digest")), configuration, layers, close=files.close)


def _diff_ids(configuration: dict[str, Any], count: int, what: str) -> list[str]:
    rootfs = configuration.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or len(found) != count or count > 1000:
        raise ImageError(f"{what}: its configuration has other layers than its manifest", "the image is damaged")
    return [str(one) for one in found]


def _opener(files: Files, name: str) -> Callable[[], BinaryIO]:
    return lambda: files.open(name)


def _docker(files: Files, engine: str, reference: str, tag: str) -> Image:
    """manifest.json of `docker save` before version 25: a list of images, layers by name."""
    rows = document(files, "manifest.json")[1]
    if isinstance(rows, dict) and "schemaVersion" in rows:
        raise ImageError(
            f"{files.what}: a `dir:` of containers-image(5), as `podman save --format docker-dir` makes it",
            "`skopeo copy dir:DIR oci:OTHER`, then oci:OTHER",
        )
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ImageError(f"{files.what}: manifest.json: not a list of images", "the image is damaged")
    tags = [[str(one) for one in found] if isinstance(found := row.get("RepoTags"), list) else [] for row in rows]
    if tag:
        rows = [row for row, own in zip(rows, tags) if any(answers_to(tag, one) for one in own)]
        if not rows:
            raise ImageError(f"{files.what}: no image {printable(tag)} in it", ONE_OF_SEVERAL)
    if len(rows) > 1:
        raise _several(files, [" ".join(own) or "without a tag" for own in tags])
    names, name = rows[0].get("Layers"), rows[0].get("Config")
    if not isinstance(names, list) or not isinstance(name, str) or not all(isinstance(one, str) for one in names):
        raise ImageError(f"{files.what}: manifest.json: no configuration and layers", "the image is damaged")
    data, configuration = document(files, name)
    if not isinstance(configuration, dict):
        raise ImageError(f"{files.what}: {printable(name)}: not a JSON object", "the image is damaged")
    diff_ids = _diff_ids(configuration, len(names), files.what)
    layers = [Layer(diff_id=diff_id, opener=_opener(files, one)) for one, diff_id in zip(names, diff_ids)]
    id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Image(reference, engine, id, configuration, layers, close=files.close)
