r"""The accesses of a run: paths and kinds of use, and the text file that stores them (``--accesses``).

The file is text, one use per line, sorted:

    # cntr accesses 1
    exec /usr/sbin/nginx
    open /etc/nginx/nginx.conf

The kinds: ``exec`` executed, ``open`` opened, ``list`` a directory that was read, ``name`` only looked up (stat,
access, a symbolic link passed). Bytes of a path other than printable ASCII, and backslashes, are written \xHH. Paths
are the container's. Two files are merged by concatenation: lines may be repeated, in any order; lines that start with #
are ignored.
"""

from __future__ import annotations

import os
import re

from cntr.errors import CntrError, printable

HEADER = "# cntr accesses 1"
KINDS = ("exec", "open", "list", "name")
LIMIT = 256 << 20  # bytes of a file
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class Accesses:
    """Paths, each with the kinds of use seen."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {}
        self.lost = False  # some were not recorded

    def add(self, kind: str, path: str) -> None:
        """Add one use."""
        self.kinds.setdefault(path, set()).add(kind)

    def merge(self, other: Accesses) -> None:
        """Add the uses of another run."""
        for path, kinds in other.kinds.items():
            self.kinds.setdefault(path, set()).update(kinds)
        self.lost = self.lost or other.lost

    def __len__(self) -> int:
        """How many paths."""
        return len(self.kinds)

    def write(self, path: str) -> None:
        """Save, replacing the file atomically."""
        lines = sorted(f"{kind} {escape(name)}" for name, kinds in self.kinds.items() for kind in kinds)
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="ascii") as stream:
            stream.write("\n".join((HEADER, *lines, "")))
        os.replace(temporary, path)


def read(path: str) -> Accesses:
    """Read a file. Raises CntrError if it is not valid."""
    found = Accesses()
    try:
        with open(path, "rb") as stream:
            data = stream.read(LIMIT)
    except OSError as error:
        raise CntrError(f"--accesses {printable(path)}: {error.strerror}", "name a file that can be written") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line or line.startswith(b"#"):
            continue
        kind, _, name = line.partition(b" ")
        if kind.decode("ascii", "replace") not in KINDS or not name.startswith(b"/"):
            raise CntrError(
                f"--accesses {printable(path)}, line {number}: not a use of a file",
                "a line is exec, open, list or name, a space, and a path",
            )
        found.add(kind.decode(), unescape(name))
    return found


def escape(path: str) -> str:
    """PATH in printable ASCII."""
    data = os.fsencode(path)
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in data)


def unescape(path: bytes) -> str:
    """The inverse of ``escape``."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), path))
