"""cntr's wheel, for machines to install."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from . import paths
from .errors import LabError


def build_wheel() -> Path:
    """cntr's wheel, built from this checkout once per state of its sources.

    Raises:
        LabError: pip could not build it.
    """
    digest = hashlib.sha256((paths.REPOSITORY / "pyproject.toml").read_bytes())
    for source in sorted((paths.REPOSITORY / "cntr").rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            digest.update(str(source.relative_to(paths.REPOSITORY)).encode() + source.read_bytes())
    place = paths.cache_dir() / "wheels" / digest.hexdigest()[:12]
    found = list(place.glob("cntr_attach-*.whl"))
    if found:
        return found[0]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--wheel-dir",
        str(place),
        str(paths.REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(place.glob("cntr_attach-*.whl"))
    if done.returncode != 0 or not found:
        raise LabError(
            f"building cntr's wheel failed: {done.stderr.strip()[-600:]}", "does `pip wheel .` work in the checkout?"
        )
    return found[0]
