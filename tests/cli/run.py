"""How these tests run cntr: as a user does, and reading what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys

CNTR = (sys.executable, "-m", "cntr")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CNTR_")}


def cntr(*arguments: str, input: str = "", user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end. user: another uid, without any capability."""
    drop = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else ()
    return subprocess.run(
        [*drop, *CNTR, *arguments],
        input=input,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The two lines of an error, without their heads: what failed, what to do. Asserts that this is all there is."""
    found = re.fullmatch(r"cntr: ([^\n]+)\nhint: ([^\n]+)\n", done.stderr)
    assert found, f"not one line and a hint: {done.stderr!r}"
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return found[1], found[2]
