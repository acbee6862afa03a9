"""Fixtures for the attacks."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from tests.attacks import kit


@pytest.fixture(scope="session")
def accomplice(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hostile program of accomplice.c."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    return kit.compiled(tmp_path_factory.mktemp("accomplice"))


@pytest.fixture
def canary(accomplice: str) -> Iterator[kit.Canary]:
    """Secrets of the host, below /opt."""
    with kit.canary(accomplice) as laid:
        yield laid
        laid.untouched()


@pytest.fixture(params=kit.TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports."""
    return request.param


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    """A directory for containers of any user, as others can't reach pytest's own."""
    with tempfile.TemporaryDirectory(prefix="cntr-attacks-") as directory:
        os.chmod(directory, 0o755)
        yield pathlib.Path(directory)
