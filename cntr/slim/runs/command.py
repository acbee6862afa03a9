"""What Docker and Podman have in common: a command-line client, and containers known by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess

from cntr.errors import CntrError, printable
from cntr.slim import commands
from cntr.slim.runs import Running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from cntr.slim.leftovers import Guard

_ABSENT = ("no such", "not found", "not known", "invalid reference", "unable to find")
_CONFIG = {"Architecture": "architecture", "Os": "os", "Created": "created", "Author": "author", "Config": "config"}


def inspect(cli: list[str], kind: str, name: str) -> dict[str, Any] | None:
    """``CLI KIND inspect NAME``; None if there is none of that name."""
    if not name or name.startswith("-"):
        return None
    try:
        rows = commands.load([*cli, kind, "inspect", name])
    except commands.Failed as error:
        if any(words in error.said.lower() for words in _ABSENT):
            return None
        raise
    return dict(rows[0]) if rows else None


def layers(row: dict[str, Any]) -> list[str]:
    """The directories of an image's layers, lowest first, if inspect names them."""
    data = (row.get("GraphDriver") or {}).get("Data") or {}
    found = [data.get("UpperDir") or "", *str(data.get("LowerDir") or "").split(":")]
    return [layer for layer in reversed(found) if layer]


def store(row: dict[str, Any], marker: str) -> str:
    """The directory above MARKER, a component of the path of an image's topmost layer."""
    return str(((row.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")).partition(marker)[0]


def config(row: dict[str, Any], path: str) -> dict[str, Any]:
    """The image's configuration: the file at PATH if it is readable and matches its digest; else what inspect shows of
    it.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(64 << 20)
        if hashlib.sha256(data).hexdigest() == str(row["Id"]).removeprefix("sha256:"):
            found = json.loads(data)
            if isinstance(found, dict):
                return found
    except (OSError, ValueError):
        pass
    return {name: row[key] for key, name in _CONFIG.items() if row.get(key)}


class CommandRunning(Running):
    """A container of an engine with a command-line client."""

    #: What inspect calls the states before the first process has ended.
    ALIVE = ("running", "created", "configured", "initialized", "stopping", "paused", "restarting")

    def __init__(self, cli: list[str], name: str, guard: Guard) -> None:
        """name: of the container."""
        self.cli, self.name, self.guard = cli, name, guard

    def state(self) -> dict[str, Any]:
        """Its state according to inspect."""
        row = inspect(self.cli, "container", self.name)
        if row is None:
            engine = self.cli[0]
            raise CntrError(f"{engine}: the container {self.name} has been removed", "start again")
        return dict(row["State"])

    def exited(self) -> int | None:
        """Its exit status."""
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            return None
        state = self.state()
        return None if state["Status"] in self.ALIVE else int(state["ExitCode"])

    def log(self) -> str:
        """The last lines."""
        return commands.run([*self.cli, "logs", "--tail", "20", self.name], both=True)

    def exec(self, words: list[str], seconds: float) -> str:
        """``exec``."""
        return commands.run([*self.cli, "exec", self.name, *words], seconds=seconds, both=True)

    def stop(self) -> None:
        """``stop``, then ``rm``."""
        try:
            if (seconds := self.patience(self.stop_signal)) > 0:
                commands.run([*self.cli, "stop", "-t", str(int(seconds)), self.name])
        except commands.Failed:
            pass  # rm -f ends it
        self.guard.undo(self.name)


def loaded(said: str) -> str:
    """The name of the image in an engine's answer to a load."""
    found = re.search(r"Loaded image(?:\(s\))?(?: ID)?: *(\S+)", said)
    return found[1].rstrip(",") if found else ""


def feed(argv: list[str], write: Callable[[IO[bytes], str], None], reference: str) -> str:
    """Run ARGV with the archive as its input; return its output. Raises commands.Failed."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    try:
        write(process.stdin, reference)
        process.stdin.close()
    except BrokenPipeError:
        pass  # its own output tells why
    finally:
        process.stdin = None
        printed, said = process.communicate(timeout=commands.SECONDS * 5)
    if process.returncode:
        text = said.decode("utf-8", "replace").strip()
        last = text.splitlines()[-1] if text else f"exit status {process.returncode}"
        hint = "this engine may not know zstd: --compress gzip" if "invalid tar header" in text else ""
        raise commands.Failed(f"{commands.shown(argv)}: {printable(last[:400])}", hint, process.returncode, text)
    return printed.decode("utf-8", "replace")
