"""Which QEMU emulates: this host's, or a newer one if that is old.

Debian 12's QEMU 7.2 takes up to twice as long as Debian 13's 10.0 for scenarios (starting Python, attaching,
compiling). On such a host the newer package is unpacked into the lab's cache, not installed, and started by its own
dynamic linker.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import mmdebstrap, paths
from .boxbuild import only_one_builder
from .errors import LabError

PROGRAM = "qemu-system-x86_64"
NEW_ENOUGH = 10
SUITE = "trixie"
PACKAGE = "qemu-system-x86"
WANTED = ("./usr/bin/qemu-system-x86_64", "./usr/lib", "./usr/lib64", "./usr/share/qemu", "./usr/share/seabios")


@dataclasses.dataclass(frozen=True)
class Emulator:
    """A QEMU: its command, and its version for the report."""

    command: tuple[str, ...]
    about: str


def version(command: tuple[str, ...]) -> str:
    """The version, such as "10.0.13"; empty if it does not say."""
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    found = re.search(r"version ([\d.]+)", said)
    return found[1] if found else ""


def ensure(mirror: str | None = None) -> Emulator:
    """The QEMU to emulate with, unpacked now if the cache does not hold it.

    Raises:
        LabError: this host has no QEMU at all, or the newer one could not be unpacked.
    """
    host = version((PROGRAM,))
    if not host:
        raise LabError(f"machines need {PROGRAM}, which is not installed", "python -m lab doctor says how")
    if int(host.partition(".")[0] or 0) >= NEW_ENOUGH:
        return Emulator((PROGRAM,), f"QEMU {host}")
    place = location()
    if not (place / "done").exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with only_one_builder(place, "this QEMU"):
            if not (place / "done").exists():
                print(f"lab: this host's QEMU {host} emulates slowly; unpacking that of {SUITE}", flush=True)
                _unpack(place, mirror)
    command = start_command(place)
    return Emulator(command, f"QEMU {(place / 'done').read_text()} of {SUITE}, unpacked")


def location() -> Path:
    """Its place in the cache."""
    recipe = hashlib.sha256(repr((SUITE, PACKAGE, WANTED)).encode()).hexdigest()[:12]
    return paths.cache_dir() / "qemu" / f"{SUITE}-{recipe}"


def start_command(place: Path) -> tuple[str, ...]:
    """PLACE's QEMU with PLACE's libraries: the host's C library may be too old for it."""
    usr = place / "usr"
    return (
        str(usr / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(usr / "lib/x86_64-linux-gnu"),
        str(usr / "bin" / PROGRAM), "-L", str(usr / "share/qemu"), "-L", str(usr / "share/seabios"),
    )  # fmt: skip


def _unpack(place: Path, mirror: str | None) -> None:
    if not shutil.which("mmdebstrap"):
        raise LabError(f"unpacking {PACKAGE} needs mmdebstrap, which is not installed", "python -m lab doctor says how")
    log = place.with_suffix(".log")
    with tempfile.TemporaryDirectory(prefix="cntr-lab-", dir="/var/tmp") as work:
        archive = Path(work, "root.tar")
        options = ["--variant=extract", "--format=tar", f"--include={PACKAGE}"]
        for step in mmdebstrap.followed(mmdebstrap.command(options, SUITE, str(archive), mirror), log, Path(work)):
            print(f"lab:   {step}", flush=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
        try:
            command = ["tar", "--extract", "--no-same-owner", f"--file={archive}", f"--directory={staging}", *WANTED]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = version(start_command(staging)) if done.returncode == 0 else ""
            if not found:
                raise LabError(
                    f"unpacking {PACKAGE} of {SUITE} failed: {done.stderr.strip()[-300:]}\n{mmdebstrap.last_words(log)}",
                    f"the whole log: {log}",
                )
            staging.chmod(0o755)
            (staging / "done").write_text(found)
            shutil.rmtree(place, ignore_errors=True)
            staging.rename(place)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
