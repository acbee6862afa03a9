"""The lab's errors."""

from __future__ import annotations


class LabError(Exception):
    """A failure of the lab itself, in one line, with a hint.

    message: what failed, on what, why. hint: what to do next; empty if there is nothing.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class LostMachine(LabError):
    """The machine has died or no longer answers. This says nothing about what was being tested."""


class CommandFailed(AssertionError):
    """A command in a machine ended differently than expected. An AssertionError: the test failed, not the lab."""
