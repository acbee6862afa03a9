"""Waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], what: str = "", seconds: float = 20, *, passing: type[Exception] | tuple[()] = ()
) -> T:
    """Wait until CONDITION is true; return its value. Raises AssertionError, naming WHAT, after SECONDS.

    passing: exceptions of CONDITION that mean "not yet".
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except passing:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or 'what was waited for'}")
        time.sleep(0.005)
