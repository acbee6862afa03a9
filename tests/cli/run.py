"""Functions that run cntr as a user does, and read its messages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cntr as package

PACKAGE = Path(package.__file__).parent
CNTR = (sys.executable, "-m", "cntr")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CNTR_")}


def cntr(*arguments: str, input: str = "", user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run cntr until it ends. user: another uid, without capabilities."""
    settings = {**ENVIRONMENT, **environment}
    with tempfile.TemporaryDirectory(prefix="cntr-cli-") as place:
        command = [*CNTR, *arguments]
        if user:  # they may not be able to reach the checkout and this interpreter, so use a copy and the system's
            os.chmod(place, 0o755)
            shutil.copytree(PACKAGE, f"{place}/cntr", ignore=shutil.ignore_patterns("__pycache__"))
            settings["PYTHONPATH"] = place
            drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            command = [*drop, os.path.realpath(sys.executable), "-m", "cntr", *arguments]
        return subprocess.run(
            command,
            input=input,
            env=settings,
            cwd="/" if user else None,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def complaint(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The two lines of an error, without their prefixes: what failed, what to do. Asserts that there are no other
    lines.
    """
    found = re.fullmatch(r"cntr: ([^\n]+)\nhint: ([^\n]+)\n", done.stderr)
    assert found, f"not one line and a hint: {done.stderr!r}"
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return found[1], found[2]
