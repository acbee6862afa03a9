"""The table row for one kind of request, used for dispatch, size checks and the trace."""

from __future__ import annotations

import os

from cntr.cntrfs.devfuse.request import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: (connection, node id, body) -> the answer's payload, or NO_ANSWER
    Handler = Callable[[Connection, int, memoryview], bytes | None]

_TWO_NAMES = ("RENAME", "SYMLINK")


class Operation:
    """One opcode of linux/fuse.h."""

    __slots__ = ("handler", "is_answered", "least", "name", "names_at", "number")

    def __init__(
        self, number: int, name: str, least: int, handler: Handler, names_at: int = -1, is_answered: bool = True
    ) -> None:
        """least: minimum size of the body in bytes; a shorter request is malformed (EINVAL).

        names_at: offset of the names in the body, if there are any.
        """
        self.number, self.name, self.least, self.handler = number, name, least, handler
        self.names_at, self.is_answered = names_at, is_answered

    def described(self, header: tuple[int, ...], body: memoryview) -> str:
        """The request as a trace shows it."""
        _, _, unique, nodeid, uid, _, pid, _ = header
        names = bytes(body[self.names_at : self.names_at + 1024]).split(b"\0")[:-1] if self.names_at >= 0 else []
        shown = "".join(" " + repr(os.fsdecode(name)) for name in names[: 1 + self.name.startswith(_TWO_NAMES)])
        who = "" if uid == 0xFFFFFFFF else f" uid={uid}"
        return f"{self.name} unique={unique} nodeid={nodeid}{who} pid={pid} in={len(body) + 40}{shown}"
