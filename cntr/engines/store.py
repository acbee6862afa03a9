"""How engine modules read: JSON, state files, users. All of it may be written by somebody hostile, none of it costs start-up."""

from __future__ import annotations

import os

from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Json = Any  # what a JSON text may hold; who looks inside expects KeyError and TypeError

MEGABYTE = 1 << 20
LIMIT = 64 * MEGABYTE  # the list of ten thousand containers fits; a 10 GB "state file" does not


class _Strict:
    """What json.decoder hands to the C scanner: the standard's numbers, no hooks."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012  the scanner's own, cleared by it after each text


def _scanner() -> Callable[[str, int], tuple[Json, int]] | None:
    # `import json` drags in re, enum and functools: 8-13 ms on top of a bare start-up, against 0.2 ms for the C
    # scanner that does all of json.loads' work. It is CPython's own, so other interpreters take the documented road.
    try:
        from _json import make_scanner
    except ImportError:
        return None
    return make_scanner(_Strict)  # type: ignore[arg-type]  # typeshed wants a JSONDecoder; these attributes are all it reads


_SCAN = _scanner()


def parse(text: str) -> Json:
    """The value of a JSON text. Raises ValueError."""
    if _SCAN is None:
        import json

        return json.loads(text)
    stripped = text.lstrip(" \t\n\r")
    try:
        value, end = _SCAN(stripped, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if stripped[end:].strip(" \t\n\r"):
        raise ValueError("text after the JSON value")
    return value


def read(path: str, *, owner: int = 0, limit: int = LIMIT) -> str:
    """The text of a state file: see ``read_bytes``."""
    return os.fsdecode(read_bytes(path, owner=owner, limit=limit))


def read_bytes(path: str, *, owner: int = 0, limit: int = LIMIT) -> bytes:
    """The content of a state file of OWNER's (a uid; 0: whose owner does not matter, root asked for root's files).

    A user's state directory may hold a FIFO (open would wait for ever), a link to /etc/shadow, or 10 GB: the file must be
    a regular one, owned by that user, and not larger than LIMIT bytes. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        info = os.fstat(fd)
        if info.st_mode & 0o170000 != 0o100000:
            raise OSError(22, "not a regular file", path)
        if owner and info.st_uid != owner:
            raise OSError(1, f"not owned by uid {owner}", path)
        if info.st_size > limit:
            raise OSError(27, f"larger than {limit} bytes", path)
        chunks = []
        while limit > 0 and (chunk := os.read(fd, min(limit, MEGABYTE))):
            chunks.append(chunk)
            limit -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def load(path: str, *, owner: int = 0) -> Json:
    """The JSON value of a state file. Raises OSError, ValueError."""
    return parse(read(path, owner=owner))


def listdir(path: str) -> list[str]:
    """The names in a directory, none where there is no such directory. Raises PermissionError and its like."""
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_component(name: str) -> bool:
    """Whether NAME can be one component of a path, and nothing else: no slash, no dot-dot, not empty, not over NAME_MAX."""
    return (
        bool(name) and name not in (".", "..") and "/" not in name and "\0" not in name and len(os.fsencode(name)) < 256
    )


def is_id_prefix(name: str) -> bool:
    """Whether NAME may be the beginning of a hexadecimal container id."""
    return 3 <= len(name) <= 64 and all(c in "0123456789abcdef" for c in name)


def answers_to(name: str, id: str, names: list[str]) -> bool:
    """Whether NAME is one of NAMES, the ID, or a beginning of it."""
    return name in names or name == id or (is_id_prefix(name) and id.startswith(name))


def roots(engine: str, *usual: str) -> list[str]:
    """The state directories of ENGINE: $CNTR_<ENGINE>_ROOT (colon-separated) before the usual ones, those that exist."""
    own = os.environ.get(f"CNTR_{engine.upper()}_ROOT", "").split(":")
    return [path for path in [*own, *usual] if path and os.path.isdir(path)]


def runtime_dirs() -> Iterator[tuple[int, str]]:
    """(uid, directory) of each user's XDG_RUNTIME_DIR, root's view; a user sees only their own.

    Where there is no systemd-logind, engines fall back to directories in /tmp; anybody can make those, so the owner of
    the directory must be the uid in its name.
    """
    me = os.geteuid()
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own and me:
        yield me, own
    for uid in listdir("/run/user"):
        if uid.isdecimal() and int(uid) and me in (0, int(uid)) and f"/run/user/{uid}" != own:
            yield int(uid), f"/run/user/{uid}"
    for name in listdir("/tmp"):
        head, _, uid = name.rpartition("-")
        if head in ("podman-run", "storage-run", "containers-user", "run") and uid.isdecimal() and int(uid):
            path = f"/tmp/{name}"
            info = os.lstat(path)
            if info.st_mode & 0o170000 == 0o040000 and info.st_uid == int(uid) and me in (0, info.st_uid):
                yield int(uid), path


def home(uid: int) -> str:
    """The home directory of UID by /etc/passwd alone: NSS could ask a network, and load libraries. "" if unknown."""
    if uid == os.geteuid() and (own := os.environ.get("HOME")):
        return own
    try:
        entry = procfs.passwd_entry(read("/etc/passwd"), str(uid))
    except OSError:
        return ""
    return entry[3] if entry else ""


def setting(text: str, section: str, key: str) -> str:
    """``key = "value"`` of [section] in a TOML text, "" if not there; enough for storage.conf, without tomllib's re."""
    current = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            current = line.strip("[] ")
        elif current == section:
            name, equals, value = line.partition("=")
            if equals and name.strip() == key:
                value = value.strip()
                return value[1 : value.find(value[0], 1)] if value[:1] in ("'", '"') else value.split("#")[0].strip()
    return ""
