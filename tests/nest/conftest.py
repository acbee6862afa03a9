"""Fixtures for tests/nest."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def prowler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of prowl.c, static, so that it runs in any container."""
    if not shutil.which("gcc"):
        pytest.skip("not installed: gcc (apt-get install)")
    program = str(tmp_path_factory.mktemp("prowl") / "prowl")
    source = pathlib.Path(__file__).with_name("prowl.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", program, str(source)], check=True)
    return program
