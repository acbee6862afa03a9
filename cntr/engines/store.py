"""Reads JSON and state files, and finds users, for the engine modules. Files may be hostile; importing this is cheap."""

from __future__ import annotations

import os

from cntr.engines import trust
from cntr.engines.container import Refused
from cntr.errors import printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Json = Any  # any JSON value; whoever uses it expects KeyError and TypeError

MEGABYTE = 1 << 20
LIMIT = 64 * MEGABYTE  # the list of ten thousand containers fits; a 10 GB "state file" does not


class _Strict:
    """The settings that json.decoder passes to the C scanner: standard numbers, no hooks."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None  # read since Python 3.15
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012  the scanner's own, cleared by it after each text


def _scanner() -> Callable[[str, int], tuple[Json, int]] | None:
    # `import json` imports re, enum and functools: 8-13 ms, where the C scanner that does the work of json.loads takes
    # 0.2 ms. The scanner is internal to CPython; other interpreters use json.
    try:
        from _json import make_scanner

        return make_scanner(_Strict)  # type: ignore[arg-type]  # typeshed wants a JSONDecoder; these attributes are all it reads
    except (ImportError, AttributeError):  # or it reads an attribute that this does not have
        return None


_SCAN = _scanner()


def parse(text: str) -> Json:
    """Parse JSON. Raises ValueError."""
    if _SCAN is None:
        import json

        return _encodable(json.loads(text))
    stripped = text.lstrip(" \t\n\r")
    try:
        value, end = _SCAN(stripped, 0)
        value = _encodable(value) if "\\ud" in text or "\\uD" in text else value
    except (StopIteration, SystemError):  # the second: it can't raise json's own error while nobody has imported json
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if stripped[end:].strip(" \t\n\r"):
        raise ValueError("text after the JSON value")
    return value


def _encodable(value: Json) -> Json:
    """VALUE with lone surrogates replaced: nothing on this machine can have such a name, and
    os.fsencode would raise.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return value.encode("utf-8", "replace").decode()
    elif isinstance(value, list):
        return [_encodable(one) for one in value]
    elif isinstance(value, dict):
        return {_encodable(key): _encodable(one) for key, one in value.items()}
    return value


def read(path: str, *, owner: int = 0, limit: int = LIMIT) -> str:
    """The text of a state file: see ``read_bytes``."""
    return os.fsdecode(read_bytes(path, owner=owner, limit=limit))


def read_bytes(path: str, *, owner: int = 0, limit: int = LIMIT) -> bytes:
    """The content of a state file of OWNER's (a uid; 0: of anyone whom ``trust`` accepts here).

    A user's state directory may hold a FIFO (opening blocks), a device (opening has effects), a link to /etc/shadow, or
    10 GB. So the file is checked before it is opened: a regular file, which only OWNER or root can have put there, of
    at most LIMIT bytes. Raises OSError.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = os.fstat(place)
        if info.st_mode & trust.S_IFMT != trust.S_IFREG:
            raise OSError(22, "not a regular file", path)
        whose = trust.merge(trust.owner(path), trust.changer(info, f"/proc/self/fd/{place}"))
        if owner and whose != owner:
            raise OSError(1, f"not owned by uid {owner}", path)
        if not owner and not trust.accepts(whose):
            raise OSError(1, written_by(whose), path)
        if info.st_size > limit:
            raise OSError(27, f"larger than {limit} bytes", path)
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            chunks = []
            while limit > 0 and (chunk := os.read(fd, min(limit, MEGABYTE))):
                chunks.append(chunk)
                limit -= len(chunk)
            return b"".join(chunks)
        finally:
            os.close(fd)
    finally:
        os.close(place)


def written_by(owner: int) -> str:
    """Why a source does not count: who besides root can have written it."""
    return "others than root can write there" if owner == trust.ANYBODY else f"uid {owner} can write there"


def load(path: str, *, owner: int = 0) -> Json:
    """The JSON value of a state file. Raises OSError, ValueError."""
    return parse(read(path, owner=owner))


def listdir(path: str) -> list[str]:
    """The names in a directory, empty if there is none. Raises PermissionError and other OSErrors."""
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_component(name: str) -> bool:
    """Whether NAME is a single path component: not empty, no slash, not . or .., not longer than NAME_MAX."""
    return (
        bool(name) and name not in (".", "..") and "/" not in name and "\0" not in name and len(os.fsencode(name)) < 256
    )


def is_whole_id(text: str) -> bool:
    """Whether TEXT is an id of Docker, Podman or containers/storage: 64 hexadecimal digits. No other text contains one
    by accident.
    """
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def is_id_prefix(name: str) -> bool:
    """Whether NAME may be the beginning of a hexadecimal container id."""
    return 3 <= len(name) <= 64 and all(c in "0123456789abcdef" for c in name)


def answers_to(name: str, id: str, names: list[str]) -> bool:
    """Whether NAME is one of NAMES, the ID, or a prefix of it."""
    return name in names or name == id or (is_id_prefix(name) and id.startswith(name))


def roots(engine: str, *usual: str) -> list[str]:
    """The state directories of ENGINE, $CNTR_<ENGINE>_ROOT (colon-separated) first, that ``trust`` accepts here.

    Raises Refused for one that any user can have written.
    """
    own = [path for path in os.environ.get(f"CNTR_{engine.upper()}_ROOT", "").split(":") if path]
    found = []
    for path in [*own, *usual]:
        if os.path.isdir(path):
            whose = trust.owner_or_anybody(path)
            if trust.accepts(whose):
                found.append(path)
            elif whose == trust.ANYBODY and path in own:
                raise Refused(f"{path}: {written_by(whose)}")
    return found


def runtime_dirs() -> list[str]:
    """The caller's XDG_RUNTIME_DIR, and the engines' fallbacks without systemd-logind. Empty for root, who asks users
    separately.
    """
    me = os.geteuid()
    if not me:
        return []
    usual = (f"/run/user/{me}", *(f"/tmp/{name}-{me}" for name in FALLBACKS))
    places = dict.fromkeys([os.environ.get("XDG_RUNTIME_DIR") or usual[0], *usual])
    return [path for path in places if trust.owner_or_anybody(path) == me]


FALLBACKS = (
    "podman-run",
    "storage-run",
    "containers-user",
    "run",
)  # /tmp/NAME-UID: any user can make it, so the owner is checked


def home(uid: int) -> str:
    """The home directory of UID, $HOME for the caller's own. "" if unknown."""
    if uid == os.geteuid() and (own := os.environ.get("HOME")):
        return own
    return home_and_group(uid)[0]


def home_and_group(uid: int) -> tuple[str, int]:
    """(home directory, group) of UID from /etc/passwd; ("", UID) if unknown. NSS is not used: it may ask a network and
    load libraries.
    """
    try:
        entry = procfs.passwd_entry(procfs.read("/etc/passwd"), str(uid))
    except OSError:
        entry = None
    return (entry[3], entry[2]) if entry else ("", uid)


def owner_name(uid: int) -> str:
    """The owner of a rootless engine as ``name`` or ``uid N``; "" for root's engines."""
    if not uid:
        return ""
    try:
        entry = procfs.passwd_entry(procfs.read("/etc/passwd"), str(uid))
    except OSError:
        entry = None
    return printable(entry[0]) if entry and entry[0] else f"uid {uid}"


def ended(engine: str, name: str, status: str, code: int, out_of_memory: bool = False) -> tuple[str, str]:
    """(what it is, what to do) for a container without a process, for NotRunning. status: the engine's word for it."""
    why = f"{status} (exit status {code}{', killed for lack of memory' if out_of_memory else ''})"
    hint = f"`{engine} start {name}`, or see `{engine} logs {name}`; a container that has ended has no process to join"
    if status in ("created", "configured", "initialized"):
        why, hint = f"{status} and was never started", f"`{engine} start {name}` starts it"
    elif status == "restarting":
        why = f"restarting: its program ends at once, last with exit status {code}"
        hint = f"`{engine} logs {name}` says why it ends; what it runs has to stay up to be attached to"
    return f"{engine} has {name}, but it is {why}", hint


def setting(text: str, section: str, key: str) -> str:
    """``key = "value"`` in [section] of a TOML text, "" if missing. Enough for storage.conf; tomllib would import re."""
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
