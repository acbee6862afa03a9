"""What the tests of ``cntr --host`` share."""

from __future__ import annotations

import pathlib
import tempfile

import pytest

from tests.cli.far import Far


@pytest.fixture(scope="module")
def far():
    with tempfile.TemporaryDirectory(
        prefix="cntr-far-"
    ) as place:  # other users come to it, as to pytest's own they do not
        found = Far(pathlib.Path(place))
        yield found
        found.stop()
