"""What every engine test begins with."""

from __future__ import annotations

import pytest

from cntr.engines import evidence


@pytest.fixture(autouse=True)
def fresh_look_at_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk of /proc is kept for a tenth of a second, a look-up's length: two tests may fit into that."""
    monkeypatch.setattr(evidence, "_scan", (float("-inf"), {}))
