"""What can go wrong in the lab, told apart."""

from __future__ import annotations


class LabError(Exception):
    """A failure of the lab itself, said in one line, with a hint on what to do.

    Args:
        message: what failed, on what, why.
        hint: the one thing to try next; empty when there is none.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class LostMachine(LabError):
    """The machine went away (it died, or no longer answers): not a statement about what was being tested."""


class CommandFailed(AssertionError):
    """A command in a machine ended otherwise than the scenario said. An AssertionError: the test failed, not the lab."""
