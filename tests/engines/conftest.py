"""A fixture for every engine test."""

from __future__ import annotations

import pytest

from cntr.engines import evidence


@pytest.fixture(autouse=True)
def fresh_look_at_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the cached walk of /proc: it is kept for a tenth of a second, which may span two tests."""
    monkeypatch.setattr(evidence, "_scan", (float("-inf"), {}))
