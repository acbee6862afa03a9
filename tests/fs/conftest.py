"""Fixtures of the filesystem tests: one CntrFS mount for each binding and test process, checked for
crashes and hangs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from testkit.servers import BINDINGS, MODES, SLOWNESS, TreeUnderTest, missing, place

# A long run of the state machine counts as one test.
HANG_SECONDS = 90.0 * SLOWNESS + 5 * int(os.environ.get("CNTR_EXAMPLES", "0"))

pytest.register_assert_rewrite("tests.fs.checks")

#: Places where, unless $CNTR_EVERY_CHECK is set, these checks alone are made: requests come there by another way to the
#: same handlers, so those that wait, are interrupted, are large or have to be told of changes are what is another's.
DENSE = {"devfuse-io_uring": ("behind.", "data.", "lock_turns.", "locks.", "openfiles.", "survival.")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the checks that DENSE does not name."""
    if os.environ.get("CNTR_EVERY_CHECK"):
        return
    left_out = []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        groups = DENSE.get(parameters.get("place_name", ""))
        if groups and "check" in parameters and not parameters["check"].name.startswith(groups):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


class Keeper:
    """Keeps the place in use mounted, and mounts it anew if its server died."""

    def __init__(self) -> None:
        self._name = ""
        self._context: object = None
        self.place: TreeUnderTest | None = None

    def get(self, name: str) -> TreeUnderTest:
        if self.place is not None and self._name == name and (self.place.server is None or self.place.server.alive):
            return self.place
        self.close()
        self._name, self._context = name, place(name)
        self.place = self._context.__enter__()
        return self.place

    def close(self) -> None:
        context, self._context, self.place = self._context, None, None
        if context is not None:
            context.__exit__(None, None, None)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    kept = Keeper()
    yield kept
    kept.close()


@pytest.fixture(scope="session", params=("plain", *BINDINGS, *MODES))
def place_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    why = missing(name)
    if why:
        pytest.skip(why)
    return name


@pytest.fixture
def here(place_name: str, keeper: Keeper) -> Iterator[TreeUnderTest]:
    """The place under test; afterwards its server must be alive and responding, with no suspicious line in its log."""
    current = keeper.get(place_name)
    hung = threading.Event()
    server = current.server

    def give_up() -> None:
        hung.set()
        if server:
            server.kill()

    watchdog = threading.Timer(HANG_SECONDS, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield current
    finally:
        watchdog.cancel()
    if server is None:
        return
    assert not hung.is_set(), f"not finished after {HANG_SECONDS:.0f} s: server killed\n{server.log_end()}"
    assert server.alive, f"the server died\n{server.log_end()}"
    text = server.new_suspicious_lines()
    assert not text, f"the server's log:\n{text}"
