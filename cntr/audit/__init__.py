"""The record of each session, and root's policy in ``/etc/cntr.conf``.

See docs/audit.md. The interface is ``session.Session``, a scope around one command: it refuses what the policy forbids
before anything is entered, and writes a record at the beginning and at the end. ``sinks`` writes records, ``who``
describes the caller. The policy reader is imported only if there is a policy, and nothing is imported once a container
is entered.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Value = Union[str, int, list[str]]
    Fields = dict[str, Value]  # of a record, by their ECS names; "" and [] are left out

STRING_LIMIT, LIST_LIMIT = 8192, 256  # characters of a value, values of a list
PRIORITY, FACILITY = 5, 10  # notice, authpriv (syslog(3))
PATIENCE_SECONDS = 1.0  # that a sink may block

# Options that extend a session's reach: recorded separately, and forbidden by a policy if it says so.
WIDENING = tuple(
    "--agent --dbus --force --forward --network --no-cgroup --no-seccomp --privileged --reverse --share --socket --tools --user --wayland "
    "--write --x11".split()
)


def write_all(fd: int, data: bytes) -> None:
    """Call write(2) until all of DATA is written. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def to_json(fields: Fields) -> str:
    """FIELDS as one line of JSON. Importing json would take 2 ms, and there are only three types of values."""
    parts = []
    for key, value in fields.items():
        shown = (
            f"[{','.join(map(quoted, value))}]"
            if isinstance(value, list)
            else value
            if isinstance(value, int)
            else quoted(value)
        )
        parts.append(f"{quoted(key)}:{shown}")
    return f"{{{','.join(parts)}}}"


def quoted(text: str) -> str:
    """Printable TEXT as a JSON string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
