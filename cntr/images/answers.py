"""Helpers for the modules of single engines: run its command, parse and check the output."""

from __future__ import annotations

import os

from cntr.engines import commands, store
from cntr.errors import printable
from cntr.images import ID_HEX, Image, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOSTS = ("docker.io/library/", "docker.io/", "localhost/")
LOG_LINES = 10


def spellings(name: str) -> list[str]:
    """The names under which a store may have NAME: with the default tag, with the default registries, unchanged."""
    if "@" in name:
        return [name, *(host + name for host in HOSTS)]
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return [tagged, *(host + tagged for host in HOSTS)]


def is_id(name: str, id: str) -> bool:
    """Whether NAME is the image's id (64 hexadecimal digits) or a prefix of it with at least twelve digits."""
    value = name.removeprefix("sha256:")
    return 12 <= len(value) <= 64 and set(value) <= ID_HEX and id.removeprefix("sha256:").startswith(value)


def run(argv: list[str], seconds: float, limit: int = 8 << 20) -> str:
    """The output of an engine's command; root runs only commands of root's (see ``commands``). Raises ImageError."""
    import subprocess

    name = argv[0]
    if not os.geteuid():
        argv = [commands.trusted(argv[0]) or "/nonexistent", *argv[1:]]

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=max(1.0, seconds),
            check=False,
            env=commands.environment(),
        )
    except FileNotFoundError:
        raise ImageError(f"{name}: not installed", f"install {name}") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{' '.join(argv[:4])}: no answer within {seconds:.0f} s", "") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ImageError(f"{name}: {printable(last[0][:300])}", f"try `{printable(' '.join(argv))}`")
    return os.fsdecode(done.stdout[:limit])


def saved(argv: list[str], image: Image, seconds: float = 600.0) -> Image:
    """Load the image that ARGV writes to a file; ``{}`` in ARGV stands for the file's name. Raises ImageError."""
    import tempfile

    from cntr.images import archive

    directory = tempfile.mkdtemp(prefix="cntr-save-", dir="/var/tmp")
    path = f"{directory}/image.tar"
    try:
        run([path if word == "{}" else word for word in argv], seconds)
        stream = open(path, "rb")  # noqa: SIM115  the image's to close
    finally:
        if os.path.exists(path):
            os.unlink(path)
        os.rmdir(directory)
    result = archive.archive_of(stream, image.reference)
    result.engine, result.id = image.engine, image.id
    return result


def documents(value: object) -> dict[str, Any]:
    """VALUE if it is a JSON object. Raises ImageError."""
    if not isinstance(value, dict):
        raise ImageError("an answer that is no JSON object", "is the engine's version a known one?")
    return value


def parse(text: str, what: str) -> Any:
    """Parse JSON from an engine. Raises ImageError."""
    try:
        return store.parse(text)
    except ValueError as error:
        raise ImageError(f"{what}: {printable(str(error))}", "its store is damaged") from None


def log_lines(path: str, owner: int) -> list[str]:
    """The last lines of a log in CRI's format, or conmon's k8s-file: time, stream, F or P, text."""
    try:
        lines = store.read(path, owner=owner).splitlines()[-LOG_LINES:]
    except OSError:
        return []
    return [printable(line.split(" ", 3)[-1][:400]) for line in lines]
