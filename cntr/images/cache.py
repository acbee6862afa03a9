"""Images unpacked once, as plain root directories, by digest, in /var/cache/cntr, accessible to root only.

    trees/CHAIN        the tree of a chain of layers (its ChainID, OCI image-spec config.md); chains with a common beginning
                       share files: a chain starts as hard links to the chain below it
    images/ID.json     which image that is, when it was last used
    locks/CHAIN        flock(2): exclusive while it is made or removed, shared while a session uses it
    tmp/               trees being made; unlocked ones are left over from killed processes and removed

Everything in a tree is verified against the image's digests before the tree gets its name (rename(2) comes last).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time

from cntr.engines import store, trust
from cntr.errors import CntrError, printable
from cntr.images import Image, ImageError, Limits, unpack
from cntr.images.unpacked import Unpacked
from cntr.linux import procfs

DIRECTORY = "/var/cache/cntr"


class HeldTree:
    """A tree in use: ``path`` is its root directory; ``close`` releases it."""

    def __init__(self, path: str, lock: int, config: dict[str, object]) -> None:
        """lock: an fd with a shared lock."""
        self.path, self.config, self._lock = path, config, lock

    def close(self) -> None:
        """Release the tree, which may then be removed."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class CacheEntry:
    """An image in the cache, for ``cntr cache``: sizes in bytes, times in seconds since 1970."""

    __slots__ = ("bytes", "chain", "files", "id", "in_use", "reference", "used")

    def __init__(self, id: str, record: dict[str, object], used: float, in_use: bool) -> None:
        self.id, self.used, self.in_use = id, used, in_use
        self.reference, self.chain = str(record.get("reference", "")), str(record.get("chain", ""))
        self.bytes, self.files = _int(record.get("bytes")), _int(record.get("files"))


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def directory() -> str:
    """The cache's directory, created if missing; it must be this user's only. Raises CntrError."""
    path = os.environ.get("CNTR_CACHE_DIR") or DIRECTORY
    if not (procfs.has_all_ids() or os.environ.get("CNTR_CACHE_DIR")):
        path = os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache"), "cntr"
        )
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ImageError(
                f"cache {printable(path)}: not a directory of this user alone (mode 0700)",
                "CNTR_CACHE_DIR names another",
            )
        # A user who has a directory above it could put another in its place while we work there.
        if procfs.has_all_ids() and not trust.accepts(owner := trust.owner(os.path.abspath(path))):
            raise ImageError(f"cache {printable(path)}: {store.written_by(owner)}", "CNTR_CACHE_DIR names another")
        for name in ("trees", "images", "locks", "tmp"):
            os.makedirs(f"{path}/{name}", mode=0o700, exist_ok=True)
    except OSError as error:
        raise ImageError(f"cache {printable(path)}: {error.strerror}", "CNTR_CACHE_DIR names another") from None
    return path


def chain_ids(image: Image) -> list[str]:
    """The ChainID of each layer with those below it, in hexadecimal. Raises ImageError if a layer has no diff_id."""
    found: list[str] = []
    for layer in image.layers:
        algorithm, _, value = layer.diff_id.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise ImageError(f"{image.label()}: a layer without a diff_id: {printable(layer.diff_id[:80])}", "")
        if not found:
            found.append(value)
        else:
            found.append(hashlib.sha256(f"sha256:{found[-1]} {layer.diff_id}".encode()).hexdigest())
    if not found:
        raise ImageError(f"{image.label()}: it has no layers", "there is nothing to unpack")
    return found


def open_tree(image: Image, limits: Limits | None = None) -> HeldTree:
    """The image's tree, unpacked first if necessary. Raises CntrError, OSError (the disk is full)."""
    path = directory()
    chains = chain_ids(image)
    _sweep(path)
    while True:
        lock = _lock(path, chains[-1], fcntl.LOCK_SH)
        if os.path.isdir(f"{path}/trees/{chains[-1]}"):
            break
        os.close(lock)
        _make_all(path, image, chains, limits or Limits())
    try:
        _remember(path, image, chains[-1])
    except BaseException:
        os.close(lock)
        raise
    return HeldTree(f"{path}/trees/{chains[-1]}", lock, image.config)


def _lock(path: str, chain: str, how: int) -> int:
    """An fd with the chain's lock. The lock file is never removed: two files of the same name would be two locks."""
    fd = os.open(f"{path}/locks/{chain}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_all(path: str, image: Image, chains: list[str], limits: Limits) -> None:
    with image.with_blobs() as source:
        if [layer.diff_id for layer in source.layers] != [layer.diff_id for layer in image.layers]:
            raise ImageError(f"{image.label()}: its engine saved other layers than it listed", "try again")
        below = -1
        try:
            with Unpacked(image.label()) as result:
                for index, chain in enumerate(chains):
                    lock = _lock(path, chain, fcntl.LOCK_EX)
                    try:
                        if not os.path.isdir(f"{path}/trees/{chain}"):
                            _make(path, source, index, chains, limits, result)
                        fcntl.flock(lock, fcntl.LOCK_SH)  # the next chain is made of links into this one
                    finally:
                        if below >= 0:
                            os.close(below)
                        below = lock
        finally:
            if below >= 0:
                os.close(below)


def _make(path: str, source: Image, index: int, chains: list[str], limits: Limits, result: Unpacked) -> None:
    """Apply layer INDEX to links to the chain below, under a temporary name until it is complete."""
    temporary = f"{path}/tmp/{os.getpid()}-{chains[index]}"
    os.mkdir(temporary, 0o700)
    mask = os.umask(0o022)  # the modes are the image's
    fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # in use: not to be swept
        tree = f"{temporary}/tree"
        os.mkdir(tree, 0o755)
        if index:
            link_tree(os.fsencode(f"{path}/trees/{chains[index - 1]}"), os.fsencode(tree))
        layer = source.layers[index]
        tree_fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with layer.open(limits) as stream:
                unpack.apply(stream, tree_fd, printable(layer.digest or layer.diff_id)[:79], limits, result)
        finally:
            os.close(tree_fd)
        os.rename(tree, f"{path}/trees/{chains[index]}")
    finally:
        os.umask(mask)
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(fd)


def link_tree(source: bytes, target: bytes) -> None:
    """Fill the empty directory TARGET with the contents of SOURCE: new directories, and hard links for everything else.

    Both are below a directory of mode 0700, so using paths is safe.
    """
    for entry in os.scandir(source):
        new = target + b"/" + entry.name
        if entry.is_dir(follow_symlinks=False):
            os.mkdir(new, 0o700)
            link_tree(entry.path, new)
            continue
        try:
            os.link(entry.path, new, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EMLINK or not entry.is_file(follow_symlinks=False):
                raise
            shutil.copy2(entry.path, new)
            status = entry.stat(follow_symlinks=False)
            os.chown(new, status.st_uid, status.st_gid)
            os.chmod(new, stat.S_IMODE(status.st_mode))
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for key in os.listxattr(source):
        os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _remember(path: str, image: Image, chain: str) -> None:
    """Write the image's record, or update its time of last use."""
    id = _hex(image.id) or chain
    name = f"{path}/images/{id}.json"
    if os.path.exists(name):
        os.utime(name)
        return
    files, size = _measure(f"{path}/trees/{chain}")
    record = {"reference": image.reference, "engine": image.engine, "chain": chain, "files": files, "bytes": size}
    record["layers"] = [layer.diff_id for layer in image.layers]
    temporary = f"{path}/tmp/{os.getpid()}-{id}.json"
    with open(temporary, "w") as stream:
        json.dump(record, stream)
    os.rename(temporary, name)


def _hex(id: str) -> str:
    value = id.removeprefix("sha256:")
    return value if len(value) == 64 and set(value) <= set("0123456789abcdef") else ""


def _measure(tree: str) -> tuple[int, int]:
    files = size = 0
    for parent, _, names in os.walk(os.fsencode(tree)):
        files += len(names)
        size += sum(os.lstat(parent + b"/" + name).st_size for name in names)
    return files, size


def _sweep(path: str) -> None:
    """Remove what killed processes left in tmp/: whatever is not locked."""
    for name in os.listdir(f"{path}/tmp"):
        left = f"{path}/tmp/{name}"
        try:
            if not os.path.isdir(left):
                if os.stat(left).st_mtime < time.time() - 3600:
                    os.unlink(left)
                continue
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # A directory younger than a minute may be between mkdir(2) and its maker's lock.
            if os.fstat(fd).st_mtime < time.time() - 60:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def rows() -> list[CacheEntry]:
    """The images in the cache, last used first. Raises CntrError."""
    path = directory()
    found = []
    for name in os.listdir(f"{path}/images"):
        id = name.removesuffix(".json")
        try:
            with open(f"{path}/images/{name}") as stream:
                record = json.loads(stream.read(1 << 20))
            used = os.stat(f"{path}/images/{name}").st_mtime
            found.append(CacheEntry(id, record, used, _in_use(path, str(record.get("chain", "")))))
        except (OSError, ValueError, AttributeError):
            continue  # being removed
    return sorted(found, key=lambda row: -row.used)


def _in_use(path: str, chain: str) -> bool:
    try:
        fd = _lock(path, chain, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    os.close(fd)
    return False


def clear(wanted: str = "") -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Remove the image WANTED (reference, id or id prefix; "" all) and every chain that no image needs. Returns
    (removed, in use).
    """
    path = directory()
    known = rows()
    chosen = [row for row in known if not wanted or wanted == row.reference or _is_prefix(wanted, row.id)]
    if wanted and not chosen:
        raise CntrError(f"cache: no image {printable(wanted)}", "`cntr cache list` shows them")
    removed = [row for row in chosen if not row.in_use]
    for row in removed:
        os.unlink(f"{path}/images/{row.id}.json")
    needed: set[str] = set()
    for row in rows():
        needed |= _chains_of(path, row)
    for chain in os.listdir(f"{path}/trees"):
        if chain not in needed:
            _remove_tree(path, chain)
    _sweep(path)
    return removed, [row for row in chosen if row.in_use]


def _is_prefix(wanted: str, id: str) -> bool:
    value = wanted.removeprefix("sha256:")
    return len(value) >= 6 and id.startswith(value)


def _chains_of(path: str, row: CacheEntry) -> set[str]:
    """All chains below an image's tree, which other images with the same base also use."""
    with open(f"{path}/images/{row.id}.json") as stream:
        layers = json.loads(stream.read(1 << 20)).get("layers", [])
    found: list[str] = []
    for diff_id in layers:
        found.append(hashlib.sha256(f"sha256:{found[-1]} {diff_id}".encode()).hexdigest() if found else diff_id[7:])
    return {row.chain, *found}


def _remove_tree(path: str, chain: str) -> None:
    """Rename the tree under its lock, so that nobody finds a part of it, and remove it. One in use stays."""
    try:
        lock = _lock(path, chain, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    try:
        gone = f"{path}/tmp/{os.getpid()}-gone-{chain}"
        os.mkdir(gone, 0o700)
        os.rename(f"{path}/trees/{chain}", f"{gone}/tree")
        shutil.rmtree(gone, ignore_errors=True)
    finally:
        os.close(lock)
