"""Writes docs/study.md from the results."""

from __future__ import annotations

import statistics
from typing import Any

PAPER = 66.6  # per cent, the paper's mean over the Top-50 images
WIDTH = 40  # characters of the histogram's longest bar

HEAD = """# The study

Images modelled on Docker Hub's most used, built from Debian bookworm's packages on a base without apt archives. Each is split by
`cntr slim` with the probe below as its exercise, loaded into Docker, run and probed, and then asked what the exercise did not
ask (*held back*): other pages, other statements, another program, `docker stop` and a restart. Written by `nox -s study`; images
that are not in the table were not run.
"""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size < 1e8 else f"{size / 1e6:.0f}"


def row(result: dict[str, Any]) -> str:
    """An image's row of the table."""
    name = f"| {result['name']} | {result['hub']} "
    if result.get("error"):
        return f"{name}| – | – | – | – | – | {' '.join(result['error'])[:120]} |"
    before, after = result["before"], result["after"]
    held = [line for line in result["held"] if line not in result["held_in_whole"]] + result["restart"]
    lost = "all answered" if not held else "; ".join(" ".join(line.replace("|", "/").split())[:90] for line in held)
    works = "yes" if not result["probe"] else "**no**"
    return (
        f"{name}| {_megabytes(before['bytes'])} / {before['files']} | {_megabytes(after['bytes'])} / {after['files']} "
        f"| {result['reduction']:.1%} | {works} | {result['seconds']:.0f} | {lost} |"
    )


def document(results: list[dict[str, Any]]) -> str:
    """The whole page."""
    good = [result for result in results if not result.get("error")]
    parts = [HEAD]
    if good:
        reductions = [100 * result["reduction"] for result in good]
        answered = sum(1 for result in good if not result["probe"])
        full = sum(
            1 for one in good if not [f for f in one["held"] if f not in one["held_in_whole"]] and not one["restart"]
        )
        added = sum(len(names) for result in good for names in result["rounds"])
        parts.append(
            f"**{len(results)} images; mean reduction of file bytes {statistics.mean(reductions):.1f} %** (median "
            f"{statistics.median(reductions):.1f}; the paper: {PAPER} % over the Top-50 with docker-slim). "
            f"{answered} of {len(results)} answer their probe, {full} also everything held back. Verifying on CntrFS "
            f"added {added} files in all.\n"
        )
        parts.append("```\n" + "\n".join(histogram(reductions)) + "\n```\n")
    parts.append(
        "| image | stands for | before: MB / files | after | smaller | answers | s | held back |\n|---|---|---|---|---|---|---|---|"
    )
    parts[-1] += "".join(f"\n{row(result)}" for result in results)
    parts.append(
        "\n\nSizes are bytes of files; s is the time from the command to the verified and loaded image, without building it."
    )
    peers = [result for result in good if result.get("peer", {}).get("bytes")]
    if peers:
        parts.append(
            "\n\n## Beside mint (docker-slim)\n\n| image | cntr MB | mint MB | mint answers | mint s |\n|---|---|---|---|---|"
        )
        for one in peers:
            peer = one["peer"]
            works = "yes" if not peer["probe"] else "**no**"
            parts[-1] += (
                f"\n| {one['name']} | {_megabytes(one['after']['bytes'])} | {_megabytes(peer['bytes'])} | {works} | {peer['seconds']:.0f} |"
            )
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def histogram(reductions: list[float]) -> list[str]:
    """How many images shrink by how much, in tens of per cent."""
    counts = [
        sum(1 for value in reductions if low <= value < low + 10 or (low == 90 and value == 100))
        for low in range(0, 100, 10)
    ]
    most = max(counts)
    return [
        f"{low:3d}-{low + 10:<3d} % {'█' * round(count / most * WIDTH)} {count or ''}".rstrip()
        for low, count in zip(range(0, 100, 10), counts, strict=True)
    ]
