"""``-o trace``: one line on stderr for each finished request; libfuse's ``-d`` writes two.

``LOOKUP unique=12 nodeid=1 uid=0 pid=77 in=46 'etc' = 0 out=144 0.061 ms``: opcode, the kernel's number of the request,
the node, the caller, bytes received, names; then the errno's name or 0, bytes answered, time since the request was
read.
"""

from __future__ import annotations

import errno
import os
from time import monotonic


def result(number: int) -> str:
    """The name of an errno, or 0."""
    return errno.errorcode.get(number, str(number)) if number else "0"


def say(text: str) -> None:
    """Write one line in a single write: requests end in several threads."""
    try:
        os.write(2, text.encode(errors="backslashreplace") + b"\n")
    except OSError:
        pass  # nobody reads it


class Trace:
    """Pending requests, and the first half of their lines."""

    def __init__(self) -> None:
        self._under_way: dict[int, tuple[str, float]] = {}

    def came(self, unique: int, text: str) -> None:
        """A request was read."""
        self._under_way[unique] = text, monotonic()

    def went(self, unique: int, number: int, size: int) -> None:
        """A request was answered with an errno or 0, in SIZE bytes; from any thread."""
        text, began = self._under_way.pop(unique, (f"unique={unique}", monotonic()))
        say(f"{text} = {result(number)} out={size} {(monotonic() - began) * 1000:.3f} ms")

    def needs_no_answer(self, unique: int) -> None:
        """A request gets no answer (FORGET), or got it at once."""
        text, _ = self._under_way.pop(unique, ("", 0.0))
        if text:
            say(text)
