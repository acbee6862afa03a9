"""Extensions of requests that create files."""

from __future__ import annotations

import errno

from cntr.cntrfs.devfuse import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.backing import Caller
    from cntr.cntrfs.devfuse.request import Connection
    from cntr.cntrfs.node import Node


def extensions(c: Connection, body: memoryview) -> tuple[memoryview, list[tuple[bytes, bytes]], tuple[int, ...]]:
    """Parse what follows the arguments of a creating request.

    Returns (the arguments, security attributes to set as (name, value), the caller's group that matters here).
    """
    if not c.extensions:
        return body, [], ()
    start = len(body) - c.extensions * 8
    if start < 0:
        raise wire.Malformed("extensions longer than the request")
    contexts: list[tuple[bytes, bytes]] = []
    groups: tuple[int, ...] = ()
    position = start
    while position + 8 <= len(body):
        size, kind = wire.EXT_HEADER.unpack_from(body, position)
        if size < 8 or position + size > len(body):
            raise wire.Malformed("an extension of wrong size")
        data = body[position + 8 : position + size]
        if kind == wire.EXT_GROUPS and len(data) >= 4:
            count = min(int.from_bytes(data[:4], "little"), (len(data) - 4) // 4)
            groups = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "little") for i in range(count))
        elif kind <= wire.MAX_NR_SECCTX:
            contexts += _security_contexts(data, kind)
        position += (size + 7) & ~7
    return body[:start], contexts, groups


def _security_contexts(data: memoryview, count: int) -> list[tuple[bytes, bytes]]:
    found = []
    position = 0
    for _ in range(count):
        if position + 8 > len(data):
            raise wire.Malformed("a security context cut off")
        size = int.from_bytes(data[position : position + 4], "little")
        name, separator, rest = bytes(data[position + 8 :]).partition(b"\0")
        if not separator or size > len(rest):
            raise wire.Malformed("a security context cut off")
        found.append((name, rest[:size]))
        position += (8 + len(name) + 1 + size + 7) & ~7
    return found


def label(c: Connection, node: Node, contexts: list[tuple[bytes, bytes]]) -> None:
    """Set the label that the kernel's security module requests for a new file."""
    for name, value in contexts:
        try:
            c.core.xattrs.set(node.nodeid, name, value, 0, None)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise


def creator(c: Connection, umask: int, groups: tuple[int, ...]) -> Caller:
    """The caller of a creating request; the kernel sends the one supplementary group that matters."""
    return c.caller(umask & 0o777, groups)
