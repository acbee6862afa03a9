"""Measures and writes docs/performance.md: python -m bench.page

Needs an idle machine, root, and about half an hour. Each part leaves its report in reports/, so an interrupted run can be
continued with --only. The page is written from the existing reports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from testkit.servers import REPOSITORY

_OPTIONS = (
    "pyfuse3,pyfuse3:no_keep_cache,pyfuse3:writeback,pyfuse3:no_readdirplus,pyfuse3:entry_timeout=0:attr_timeout=0"
)


def parts(rounds: int, peers: list[str]) -> dict[str, list[str]]:
    """The command of each report, by its name: bench-NAME.json."""
    fs = [sys.executable, "-m", "bench.fs", "--rounds", str(rounds)]
    others = [word for peer in peers for word in ("--peer", peer)]
    cpu = str(min(os.sched_getaffinity(0)))
    return {
        "requests": [sys.executable, "-m", "bench.fs_requests"],
        "fs": [*fs, "--places", "native,bind,devfuse,devfuse:io_uring,devfuse:as_nobody,pyfuse3", *others],
        "one": ["taskset", "-c", cpu, *fs, "--places", "native,devfuse,devfuse:as_nobody", *others],
        "options": [
            *fs,
            "--rounds",
            str(min(rounds, 5)),
            "--cpu-calls",
            "0",
            "--only",
            "FUSE cold,warm,write 4k",
            "--places",
            f"native,{_OPTIONS}",
        ],
        "million": [*fs, "--only", "-", "--cpu-calls", "0", "--places", "native,devfuse,pyfuse3", "--million"],
        "forward": [sys.executable, "-m", "bench.forward"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="as of bench.fs")
    parser.add_argument(
        "--only", default="", help=f"of {', '.join(parts(1, []))}: these (a,b); -: none, the page alone"
    )
    options = parser.parse_args()
    known = parts(options.rounds, options.peer)
    wanted = [name for name in options.only.split(",") if name and name != "-"] or ([] if options.only else list(known))
    if unknown := set(wanted) - set(known):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    reports = REPOSITORY / "reports"
    failed = []
    for name in wanted:
        began = time.monotonic()
        done = subprocess.run([*known[name], "--json", reports / f"bench-{name}.json"], cwd=REPOSITORY, check=False)
        status = f"exit status {done.returncode}, " if done.returncode else ""
        print(f"{name}: {status}{time.monotonic() - began:.0f} s", flush=True)
        failed += [name] * bool(done.returncode)
    page = [sys.executable, "-m", "tests.suites.document", "--performance"]
    subprocess.run([*page, "--bench", reports / "bench-fs.json"], cwd=REPOSITORY, check=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
