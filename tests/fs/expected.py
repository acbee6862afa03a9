"""Checks that a binding is known not to pass, with the reason. A check listed here that passes fails the suite.

Keys are (binding, check); a binding of "*" stands for both.
"""

from __future__ import annotations

EXPECTED: dict[tuple[str, str], str] = {}


def reason(binding: str, check: str) -> str:
    """Why CHECK is expected to fail on BINDING; empty when it must pass."""
    return EXPECTED.get((binding, check)) or (EXPECTED.get(("*", check), "") if binding != "plain" else "")
