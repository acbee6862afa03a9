"""``nox -s study``: builds, slims, loads, runs and probes each image of the recipes, then writes docs/study.md from the
results.

An interrupted run continues: images with a result by the same rules are skipped (``--again`` repeats them), so that the
page never mixes rules. Besides the base, one image at a time is on the disk: its archive, layers and images are then
removed (``--keep`` keeps them).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.study import build, page
from bench.study.recipe import Recipe
from bench.study.recipes import BY_NAME, RECIPES

ROOT = Path(__file__).parents[2]
DOCKER = ["docker"]
START_SECONDS = 60


def rules_digest() -> str:
    """A digest of what the results depend on: the source of the rules."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "cntr/slim/rules").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def results_by(results: Path, digest: str) -> list[dict[str, Any]]:
    """The results, by these rules, of the images in the recipes."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    return [row for row in found if row["name"] in BY_NAME and row.get("rules_digest") == digest]


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output."""
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


class Container:
    """A container of an image, probed as the study does it."""

    def __init__(self, recipe: Recipe, image: str) -> None:
        self.recipe = recipe
        done = run(*DOCKER, "run", "-d", "--network", "none", image)
        if done.returncode:
            raise SystemExit(f"{image}: {done.stderr.strip()}")
        self.id = done.stdout.strip()

    def probe(self, which: str, seconds: float) -> list[str]:
        """Run the recipe's steps once the container answers; return those that fail, or fail in time."""
        end = time.monotonic() + seconds
        while True:
            pid = run(*DOCKER, "inspect", "-f", "{{.State.Pid}}", self.id).stdout.strip()
            if pid in ("", "0"):
                return [
                    "the container has ended: " + run(*DOCKER, "logs", "--tail", "3", self.id).stderr.strip()[-200:]
                ]
            environment = {**os.environ, "CNTR_SLIM_PID": pid}
            words = [sys.executable, "-m", "bench.study.probe", self.recipe.name, which]
            done = run("nsenter", "-t", pid, "-n", *words, env=environment)
            failed = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            if not done.returncode or time.monotonic() > end:
                return failed if done.returncode else []
            time.sleep(0.2)

    def restart(self) -> list[str]:
        """``docker stop``, ``docker start``; return what fails."""
        failed = []
        begin = time.monotonic()
        run(*DOCKER, "stop", "-t", "10", self.id)
        if time.monotonic() - begin > 60:
            failed.append(f"docker stop took {time.monotonic() - begin:.0f} s")
        if run(*DOCKER, "start", self.id).returncode:
            failed.append("docker start")
        return failed + [f"after a restart: {line}" for line in self.probe("probe", START_SECONDS)]

    def remove(self) -> None:
        """Remove it with its volumes."""
        run(*DOCKER, "rm", "-f", "-v", self.id)


def whole(recipe: Recipe, image: str) -> tuple[list[str], list[str]]:
    """The steps that fail in the whole image: they say nothing about the slim one."""
    container = Container(recipe, image)
    try:
        return container.probe("probe", START_SECONDS), container.probe("held", 5)
    finally:
        container.remove()


def study(place: Path, recipe: Recipe, peer: str) -> dict[str, Any]:
    """Process one image, from its build to its figures."""
    reference = f"localhost/study/{recipe.name}:1"
    archive = build.archive(place, recipe)
    run(*DOCKER, "load", "-q", "-i", str(archive))
    in_whole, held_in_whole = whole(recipe, reference)
    result: dict[str, Any] = {"name": recipe.name, "hub": recipe.hub, "whole": in_whole, "held_in_whole": held_in_whole}
    with tempfile.TemporaryDirectory(prefix="study-") as work:
        report = Path(work, "report.json")
        words = [sys.executable, "-m", "cntr", "slim", f"docker:{reference}", "--load", "--report", str(report)]
        begin = time.monotonic()
        done = run(*words, "--", sys.executable, "-m", "bench.study.probe", recipe.name, "probe")
        result["seconds"] = round(time.monotonic() - begin, 1)
        result["error"] = done.stderr.strip().splitlines()[-2:] if done.returncode else []
        if not done.returncode:
            document = json.loads(report.read_text())
            for key in ("before", "after", "reduction", "rounds", "first_answer", "slim_id", "recorder"):
                result[key] = document[key]
            result["packages"] = [len(document["packages"][kind]) for kind in ("kept", "gone")]
            container = Container(recipe, f"{reference}-slim")
            try:
                result["probe"] = container.probe("probe", START_SECONDS)
                result["held"] = container.probe("held", 5)
                result["restart"] = container.restart()
            finally:
                container.remove()
    if peer:
        result["peer"] = by_peer(peer, recipe, reference)
    run(*DOCKER, "rmi", "-f", f"{reference}-slim", reference)
    return result


def by_peer(peer: str, recipe: Recipe, reference: str) -> dict[str, Any]:
    """The same with mint (docker-slim): size, time, whether it works. Its exercise consists of the ports it probes
    itself.
    """
    tag = f"localhost/study/{recipe.name}:peer"
    begin = time.monotonic()
    done = run(peer, "slim", "--target", reference, "--tag", tag, "--network", "host", "--continue-after", "10")
    found: dict[str, Any] = {"seconds": round(time.monotonic() - begin, 1), "status": done.returncode}
    size = run(*DOCKER, "image", "inspect", "-f", "{{.Size}}", tag).stdout.strip()
    if size.isdecimal():
        container = Container(recipe, tag)
        try:
            found |= {"bytes": int(size), "probe": container.probe("probe", 20), "held": container.probe("held", 5)}
        finally:
            container.remove()
            run(*DOCKER, "rmi", "-f", tag)
    return found


def main() -> None:
    """Process all requested images in turn."""
    parser = argparse.ArgumentParser(prog="nox -s study --")
    parser.add_argument("names", nargs="*", help="the images (default: all)")
    parser.add_argument("--place", default="/var/tmp/cntr-study", help="where to build, and to keep results")
    parser.add_argument("--again", action="store_true", help="repeat what has a result already")
    parser.add_argument("--keep", action="store_true", help="keep archives and layers")
    parser.add_argument(
        "--peer", default="", metavar="mint=PATH", help="do the same with mint (docker-slim), for comparison"
    )
    options = parser.parse_args()
    place = Path(options.place)
    results = place / "results"
    results.mkdir(parents=True, exist_ok=True)
    digest = rules_digest()
    done = set() if options.again else {row["name"] for row in results_by(results, digest)}
    for recipe in [BY_NAME[name] for name in options.names] or RECIPES:
        path = results / f"{recipe.name}.json"
        if recipe.name in done:
            continue
        print(recipe.name, flush=True)
        result = study(place, recipe, options.peer.removeprefix("mint=")) | {"rules_digest": digest}
        path.write_text(json.dumps(result, indent=1))
        print(page.row(result), flush=True)
        if not options.keep:
            shutil.rmtree(place / "layers" / recipe.name, ignore_errors=True)
            (place / f"{recipe.name}.tar").unlink(missing_ok=True)
    target = ROOT / "docs/study.md"
    target.write_text(page.document(results_by(results, digest)))
    print(target)


if __name__ == "__main__":
    main()
