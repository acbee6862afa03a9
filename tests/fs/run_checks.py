"""Run the checks in any directory of any filesystem: one line for each check that does not pass, and a total."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from testkit.servers import remove_tree

from .checks import all_checks
from .checks._tools import Unsupported


def fresh_directory(parent: Path) -> str:
    """Make a new directory there; return its name."""
    made = tempfile.mkdtemp(prefix="check-", dir=parent)
    os.chmod(made, 0o755)
    return os.path.basename(made)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fs.run_checks", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--behind", type=Path, help="the same directory, not through the filesystem under test")
    parser.add_argument("-k", default="", help="only checks whose name contains this text")
    parser.add_argument("-v", action="store_true", help="a line per check, and tracebacks")
    options = parser.parse_args()
    behind = options.behind or options.directory
    count = {"pass": 0, "fail": 0, "unsupported": 0}
    for check in all_checks():
        if options.k not in check.name:
            continue
        name = fresh_directory(options.directory)
        started = time.monotonic()
        result, text = "pass", ""
        try:
            check.run(options.directory / name, behind / name)
        except Unsupported as reason:
            result, text = "unsupported", str(reason)
        except Exception as error:
            result, text = "fail", f"{type(error).__name__}: {error}"
            if options.v:
                traceback.print_exc()
        count[result] += 1
        if options.v or result != "pass":
            print(f"{result:11} {check.name}  {text}  ({time.monotonic() - started:.2f} s)", flush=True)
        remove_tree(behind / name)
    print(", ".join(f"{number} {result}" for result, number in count.items()))
    return 1 if count["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
