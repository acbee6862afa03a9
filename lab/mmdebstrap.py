"""Runs mmdebstrap(1): from the mirror that this machine's apt uses, contained, with its steps shown."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

from . import sources

# If interrupted, mmdebstrap waits for its package manager; if killed, it leaves mounts. So it runs in namespaces that
# end with it. (For an ordinary user it makes its own, and cleans up itself.)
_CONTAINED = (
    ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() == 0
    else []
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def command(options: list[str], suite: str, target: str, mirror: str | None) -> list[str]:
    """The command line that makes SUITE at TARGET. Raises LabError if no mirror is known."""
    found = [*_CONTAINED, "mmdebstrap", "--components=main", '--aptopt=APT::Install-Recommends "false"', *options]
    if KEYRING.exists():
        found.append(f"--keyring={KEYRING}")
    found += [f"--aptopt={option}" for option in sources.proxy_options()]
    return [*found, suite, target, *sources.lines(suite, mirror)]


def followed(command: list[str], log: Path, work: Path) -> Generator[str]:
    """Run `command` with output to `log` and files in `work`; yield mmdebstrap's own steps, each with its time."""
    started = time.monotonic()
    with (
        log.open("w") as sink,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**os.environ, "TMPDIR": str(work)},
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                sink.write(line)
                if line.startswith("I: ") and not line.startswith(("I: automatically", "I: chosen", "I: success")):
                    yield f"{time.monotonic() - started:5.0f} s  {line[3:].strip()[:100]}"
            process.wait()
        finally:
            if process.poll() is None:
                if _CONTAINED:
                    process.kill()
                else:
                    process.terminate()
                process.stdout.read()  # until the last of its processes is gone


def last_words(log: Path) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-25:])
