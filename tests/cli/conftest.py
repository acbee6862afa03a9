"""Fixtures of several test files."""

from __future__ import annotations

import pathlib
import tempfile

import pytest

from tests.cli.far import Far


@pytest.fixture(scope="module")
def far():
    with tempfile.TemporaryDirectory(prefix="cntr-far-") as place:  # other users can reach it, unlike pytest's own
        found = Far(pathlib.Path(place))
        yield found
        found.stop()


@pytest.fixture
def at(container):
    """The word for a path in the container of the test file."""
    return lambda path: f"{container.pid}:{path}"
