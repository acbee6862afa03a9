"""Fixtures for the tests of ``cntr --host``."""

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
