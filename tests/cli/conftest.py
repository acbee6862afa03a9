"""Fixtures of several test files."""

from __future__ import annotations

import pytest

from testkit.far import far_machine


@pytest.fixture(scope="module")
def far():
    with far_machine() as found:
        yield found


@pytest.fixture
def at(container):
    """The word for a path in the container of the test file."""
    return lambda path: f"{container.pid}:{path}"
