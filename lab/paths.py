"""The lab's directories: a persistent cache for boxes, and one directory per run."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LAB = Path(__file__).resolve().parent


def cache_dir() -> Path:
    """The cache: $CNTR_LAB_CACHE, or cntr-lab in the user's cache directory."""
    told = os.environ.get("CNTR_LAB_CACHE")
    if told:
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cntr-lab"


def runs_dir() -> Path:
    """One directory per machine that was started and not destroyed."""
    return cache_dir() / "runs"


def new_run_dir(machine: str) -> Path:
    """A fresh directory for one machine of one run; its name is unique among all labs of this user."""
    path = runs_dir() / f"{machine}-{os.getpid()}-{secrets.token_hex(2)}"
    path.mkdir(parents=True, mode=0o700)
    return path
