"""Times commands side by side, in interleaved rounds of one run, so that other load affects all of them alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class BenchFailed(Exception):
    """A command to be timed failed: its status and output."""


@dataclass
class Row:
    """One command and its times in seconds, one per round."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.times)

    @property
    def best(self) -> float:
        """Seconds: the time least disturbed by other load."""
        return min(self.times)

    def run(self) -> float:
        """Run it once; return seconds from fork to exit. Raises BenchFailed."""
        begun = time.perf_counter()
        done = subprocess.run(
            self.argv, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        took = time.perf_counter() - begun
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise BenchFailed(f"{self.name}: exit status {done.returncode}: {said}")
        return took


def interleave(rows: Sequence[Row], rounds: int) -> None:
    """Time every row once per round, starting each round with another row, after one round that does not count."""
    for row in rows:
        row.run()
    for number in range(rounds):
        start = number % len(rows)
        for row in (*rows[start:], *rows[:start]):
            row.times.append(row.run())


def table(rows: Sequence[Row], base: Row) -> str:
    """Milliseconds, and the ratios of the medians and of the best times to BASE."""
    width = max(len(row.name) for row in rows)
    lines = [f"{''.ljust(width)}  median ms   best ms    ratio (median, best)"]
    for row in rows:
        ratios = f"{row.median / base.median:7.2f} {row.best / base.best:7.2f}"
        lines.append(f"{row.name.ljust(width)}  {row.median * 1000:9.1f} {row.best * 1000:9.1f}  {ratios}")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """The machine's properties that affect the results."""
    load = " ".join(f"{number:.2f}" for number in os.getloadavg())
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "load": load,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def compare(
    title: str, rows: Sequence[Row], rounds: int, base: str, reach: Sequence[tuple[str, str, float]], path: Path
) -> int:
    """Time ROWS and report them; return 1 if one of them fails, and say which, else 0."""
    try:
        interleave(rows, rounds)
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    report(title, rows, base, reach, path)
    return 0


def report(title: str, rows: Sequence[Row], base: str, reach: Sequence[tuple[str, str, float]], path: Path) -> None:
    """Print the table, with ratios to the row BASE, and the ratios of REACH (row, its base, the most); write all as
    JSON.
    """
    by_name = {row.name: row for row in rows}
    facts = machine()
    print(f"{title}, {len(rows[0].times)} interleaved rounds; {', '.join(f'{k} {v}' for k, v in facts.items())}")
    print(table(rows, by_name[base]))
    ratios = []
    for name, to, most in reach:
        if name in by_name and to in by_name:
            median = by_name[name].median / by_name[to].median
            best = by_name[name].best / by_name[to].best
            ratios.append({"of": name, "to": to, "median": median, "best": best, "reach": most})
            print(f"{name}: {median:.2f} × {to} by medians, {best:.2f} × by best times (reach: {most:g})")
    times = {row.name: {"median": row.median, "best": row.best, "all": row.times} for row in rows}
    write_json(path, {"machine": facts, "seconds": times, "ratios": ratios})


def write_json(path: Path, content: object) -> None:
    """Write a report, making its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nwritten: {path}")
