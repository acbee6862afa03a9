"""File systems in files, mounted for a test."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_SECONDS = 20.0  # seconds for a server's processes to leave the mount


@contextlib.contextmanager
def mounted(image: Path, target: Path, options: str = "loop") -> Iterator[Path]:
    """Mount IMAGE at TARGET, which exists. It is always unmounted, lazily if a process still uses
    it.

    Skips if the kernel has no loop devices.
    """
    done = subprocess.run(
        ["mount", "-o", options, str(image), str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a loop device is missing: {done.stderr.strip()}")
    try:
        yield target
    finally:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while subprocess.run(["umount", target], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", target], check=True)
                break
            time.sleep(0.05)
