"""The recipes of docs/howto.md on a container that has users of its own, on both transports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit import howto
from tests.nest.box import REPOSITORY, Box

PROGRAM = Path(REPOSITORY) / "lab" / "provision" / "slim-app.c"
USERS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:the application:/tmp:/bin/sh\n",
    "/etc/group": "root:x:0:\napp:x:1000:\n",
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the container's program is made by it")
    program = tmp_path_factory.mktemp("howto") / "slim-app"
    subprocess.run(["gcc", "-g", "-O0", "-fno-omit-frame-pointer", "-static", "-o", program, PROGRAM], check=True)
    with Box(programs={"/slim-app": str(program)}, argv=["/slim-app"], files=USERS) as box:
        subprocess.run(["nsenter", "-t", str(box.pid), "-n", "ip", "link", "set", "lo", "up"], check=True)
        (box.root / "app").unlink()
        (box.root / "app").mkdir()
        yield box


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a ``cntr`` in PATH."""
    directory = tmp_path_factory.mktemp("bin")
    cntr = directory / "cntr"
    cntr.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m cntr "$@"\n')
    cntr.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize("transport", ["mount", "fuse"])
@pytest.mark.parametrize("recipe", howto.RECIPES, ids=lambda recipe: f"{recipe.tool}-{recipe.shows[:12]}")
def test_a_recipe(web: Box, environment: dict[str, str], recipe: howto.Recipe, transport: str) -> None:
    if shutil.which(recipe.tool) is None:
        pytest.skip(f"{recipe.tool} is missing")
    script = recipe.script(str(web.pid), f"--transport {transport}")
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, (script, done)


def test_files_in_and_out(web: Box, environment: dict[str, str], tmp_path: Path) -> None:
    """Every ``cntr cp`` of "Change a file in an image without an editor", one after the other, in a directory of its own."""
    (web.root / "app" / "dump.bin").write_bytes(bytes(range(256)))
    (web.root / "srv").mkdir(exist_ok=True)
    (web.root / "srv" / "page").write_text("x")
    (tmp_path / "config.toml").write_text("a = 1\n")
    (tmp_path / "config.in").write_text("b = $WORTH\n")

    def recipe(beginning: str) -> str:
        command = howto.line(beginning, str(web.pid))
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment | {"WORTH": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done)
        return done.stdout

    recipe("cntr cp web:/app/dump.bin .")
    assert (tmp_path / "dump.bin").read_bytes() == bytes(range(256))
    recipe("cntr cp config.toml web:/app/")
    assert (web.root / "app" / "config.toml").read_text() == "a = 1\n"
    assert recipe("cntr cp web:/app/dump.bin /dev/stdout | xxd").startswith("00000000: 0001 0203")
    recipe("cntr cp --json web:/srv")
    assert (tmp_path / "srv" / "page").read_text() == "x"
    assert (tmp_path / "events.jsonl").read_text()
    if shutil.which("envsubst") is None:
        pytest.skip("envsubst is missing (Debian: gettext-base)")
    recipe("envsubst < config.in | cntr cp")
    assert (web.root / "app" / "config.toml").read_text() == "b = 2\n"
