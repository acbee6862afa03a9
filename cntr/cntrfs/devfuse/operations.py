"""What the server knows of one kind of request: a row of the table that dispatch, its checks and the trace all use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cntr.cntrfs.devfuse.request import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    #: (connection, node id, body) -> the answer's payload, or NO_ANSWER
    Handler = Callable[[Connection, int, memoryview], bytes | None]


class Operation:
    """One opcode of linux/fuse.h."""

    __slots__ = ("handler", "least", "name", "number")

    def __init__(self, number: int, name: str, least: int, handler: Handler) -> None:
        """least: bytes behind the header that the request has at least; anything shorter is malformed (EINVAL)."""
        self.number, self.name, self.least, self.handler = number, name, least, handler
