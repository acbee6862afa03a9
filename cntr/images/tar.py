"""Reads tar as images use it: ustar, GNU (long names, sparse, base 256) and pax, in one pass, everything bounded.

tarfile is not used: it reads an extension header of any size into memory, and decodes names. Here names are bytes.
"""

from __future__ import annotations

from cntr.errors import printable
from cntr.images import ImageError, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Stream(Protocol):
        """An input stream: read(n) returns n bytes, fewer only at the end."""

        def read(self, size: int, /) -> bytes:
            """The next bytes."""


BLOCK = 512
KINDS = {
    **{b"0": "file", b"\0": "file", b"7": "file", b"S": "file"},
    **{b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "directory", b"6": "fifo"},
}
EXTENSIONS = frozenset((b"x", b"g", b"L", b"K"))
PATH_MAX = 4096
SPARSE_PARTS = 100_000
ZEROS = bytes(BLOCK)
XATTR = b"SCHILY.xattr."
NO_ID = 0xFFFFFFFF


class Entry:
    """One member. kind: file, directory, symlink, hardlink, char, block, fifo; size: a file's length in bytes; mtime:
    in ns.

    parts: the (offset, length) rows of a sparse file's data, None for a file without holes.
    """

    __slots__ = (
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "parts",
        "size",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: str) -> None:
        """The reader fills in everything else."""
        self.name, self.kind, self.link = name, kind, b""
        self.mode = self.uid = self.gid = self.size = self.stored = self.mtime = self.major = self.minor = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.parts: list[tuple[int, int]] | None = None


class Reader:
    """Iterates over the entries; ``data`` yields the bytes of the current one. Raises ImageError if it is not tar."""

    def __init__(self, stream: Stream, what: str, limits: Limits) -> None:
        """stream: see Stream; what: the archive's name in errors."""
        self._stream, self._what, self._limits = stream, what, limits
        self._left = self._padding = 0  # of the current entry
        self._global: dict[bytes, bytes] = {}
        self._names = 0  # bytes of all names so far, which unpacking keeps in memory
        self.position = 0  # bytes read
        self.entries = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry
            self.skip()

    def bad(self, why: str) -> ImageError:
        """The error for a broken or hostile archive."""
        return ImageError(f"{self._what}: {why} (at byte {self.position})", "the archive is damaged or malicious")

    def skip(self) -> None:
        """Skip the current entry's data."""
        for _ in self.data():
            pass
        self._exactly(self._padding)
        self._padding = 0

    def data(self) -> Iterator[bytes]:
        """Yield the stored bytes of the current entry that were not read yet."""
        while self._left:
            chunk = self._exactly(min(self._left, 1 << 18))
            self._left -= len(chunk)
            yield chunk

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size) if size else b""
        self.position += len(data)
        if len(data) != size:
            raise self.bad("ends in the middle")
        return data

    def _next(self) -> Entry | None:
        pax: dict[bytes, bytes] = {}
        names: dict[bytes, bytes] = {}
        extensions = 0
        while True:
            header = self._stream.read(BLOCK)
            self.position += len(header)
            if not header or header == ZEROS:
                return None
            if len(header) != BLOCK:
                raise self.bad("ends in the middle of a header")
            kind = header[156:157]
            self._check(header)
            self.entries += 1
            if self.entries > self._limits.entries:
                raise self.bad(f"more than {self._limits.entries} entries")
            if kind not in EXTENSIONS:
                return self._entry(header, kind, {**self._global, **pax}, names)
            extensions += 1
            size = self._number(header[124:136])
            if not 0 <= size <= self._limits.extension or extensions > 16:
                raise self.bad(f"an extension header of {size} bytes, or too many")
            text = self._exactly(size)
            self._exactly(-size % BLOCK)
            if kind in (b"L", b"K"):
                names[kind] = text.rstrip(b"\0")
            else:
                (self._global if kind == b"g" else pax).update(self._pax(text))
                if sum(len(key) + len(value) for key, value in self._global.items()) > self._limits.extension:
                    raise self.bad(f"global records of more than {self._limits.extension} bytes")

    def _check(self, header: bytes) -> None:
        """Check the header's checksum, whose own field counts as spaces; some writers computed it over signed bytes."""
        try:
            written = int(header[148:156].strip(b" \0") or b"0", 8)
        except ValueError:
            raise self.bad("not a tar header") from None
        found = sum(header) - sum(header[148:156]) + 256
        if found != written:
            signed = found - 256 * sum(1 for byte in header[:148] + header[156:] if byte > 127)
            if signed != written:
                raise self.bad("not a tar header: wrong checksum")

    def _number(self, field: bytes) -> int:
        """An octal number, or GNU's base 256. Raises ImageError; only times may be negative."""
        if field[:1] in (b"\x80", b"\xff"):
            return int.from_bytes(field[1:], "big") - (1 << 8 * (len(field) - 1) if field[0] == 0xFF else 0)
        text = field.partition(b"\0")[0].strip()
        try:
            return int(text, 8) if text else 0
        except ValueError:
            raise self.bad("not a number in a header") from None

    def _pax(self, text: bytes) -> dict[bytes, bytes]:
        r"""Parse ``LENGTH KEY=VALUE\n`` records; LENGTH is that of the whole record (pax(1))."""
        found: dict[bytes, bytes] = {}
        position = 0
        sparse: list[bytes] = []
        while position < len(text):
            space = text.find(b" ", position, position + 20)
            digits = text[position:space] if space > 0 else b""
            end = position + int(digits) if digits.isdigit() else 0
            if end <= space or end > len(text) or text[end - 1 : end] != b"\n":
                raise self.bad("a broken pax record")
            key, equals, value = text[space + 1 : end - 1].partition(b"=")
            if not equals:
                raise self.bad("a broken pax record")
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # repeated in format 0.0
                sparse.append(value)
            else:
                found[key] = value
            position = end
        if sparse:
            found[b"GNU.sparse.map"] = b",".join(sparse)
        return found

    def _entry(self, header: bytes, kind: bytes, pax: dict[bytes, bytes], names: dict[bytes, bytes]) -> Entry:
        if kind not in KINDS:
            raise self.bad(f"an entry of the unknown kind {kind!r}")
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or names.get(b"L") or name
        entry = Entry(name, KINDS[kind])
        if kind in (b"0", b"\0") and name.endswith(b"/"):  # before ustar
            entry.kind = "directory"
        entry.link = pax.get(b"linkpath") or names.get(b"K") or header[157:257].partition(b"\0")[0]
        if len(entry.name) > PATH_MAX or len(entry.link) > PATH_MAX or b"\0" in entry.name or b"\0" in entry.link:
            raise self.bad("a name that is none")
        self._names += len(entry.name) + len(entry.link)
        if self._names > self._limits.names:
            raise self.bad(f"names of more than {self._limits.names} bytes")
        entry.mode = self._number(header[100:108]) & 0o7777
        entry.uid, entry.gid = self._id(pax, b"uid", header[108:116]), self._id(pax, b"gid", header[116:124])
        size = self._decimal(pax[b"size"]) if b"size" in pax else self._number(header[124:136])
        if not 0 <= size <= self._limits.total:
            raise self.bad(f"a size of {size} bytes")
        # Only files have data: Go's and Python's readers ignore the size of other kinds.
        entry.stored = self._left = size if entry.kind == "file" else 0
        self._padding = -self._left % BLOCK
        entry.size = entry.stored
        entry.mtime = self._time(pax.get(b"mtime"), header[136:148])
        if kind in (b"3", b"4"):
            entry.major, entry.minor = self._number(header[329:337]), self._number(header[337:345])
        entry.xattrs = {key[len(XATTR) :]: value for key, value in pax.items() if key.startswith(XATTR)}
        if entry.kind == "file":
            self._sparse(entry, header, kind, pax)
        return entry

    def _id(self, pax: dict[bytes, bytes], key: bytes, field: bytes) -> int:
        text = pax.get(key, b"")
        number = int(text) if text.isdigit() and len(text) < 12 else self._number(field)
        if not 0 <= number < NO_ID:
            raise self.bad(f"{key.decode()} {number}")
        return number

    def _time(self, text: bytes | None, field: bytes) -> int:
        """Nanoseconds since 1970; 0 for a time that no filesystem can store."""
        seconds, _, rest = (text or b"").partition(b".")
        if text and seconds.lstrip(b"-").isdigit() and len(seconds) < 20:
            nanoseconds = int((rest + b"000000000")[:9]) if rest.isdigit() else 0
            value = int(seconds) * 10**9 + (-nanoseconds if seconds.startswith(b"-") else nanoseconds)
        else:
            value = self._number(field) * 10**9
        return value if -(1 << 31) <= value // 10**9 < 1 << 33 else 0

    def _sparse(self, entry: Entry, header: bytes, kind: bytes, pax: dict[bytes, bytes]) -> None:
        """Fill in parts and size of a sparse file: GNU's old format in the header, pax 0.0 and 0.1 in records, 1.0 in
        the data.
        """
        numbers: list[int] | None = None
        real = 0
        if kind == b"S":
            real, numbers = self._number(header[483:495]), self._old_sparse(header)
        elif pax.get(b"GNU.sparse.major") == b"1":
            real, numbers = self._decimal(pax.get(b"GNU.sparse.realsize", b"")), self._sparse_in_data()
        elif b"GNU.sparse.map" in pax:
            real = self._decimal(pax.get(b"GNU.sparse.size", b""))
            numbers = [self._decimal(word) for word in pax[b"GNU.sparse.map"].split(b",")]
        if numbers is None:
            return
        rows = list(zip(numbers[::2], numbers[1::2]))
        end = 0
        for offset, length in rows:
            if offset < end or length < 0:
                raise self.bad("a sparse map that goes backwards")
            end = offset + length
        if end > real or real > self._limits.file or sum(length for _, length in rows) != self._left:
            raise self.bad("a sparse map that does not fit its file")
        entry.parts, entry.size, entry.stored = rows, real, self._left

    def _old_sparse(self, header: bytes) -> list[int]:
        rows, extended, block = header[386:482], header[482], header
        found: list[int] = []
        while True:
            for start in range(0, len(rows) // 24 * 24, 12):
                if rows[start : start + 12].strip(b"\0"):
                    found.append(self._number(rows[start : start + 12]))
            if not extended:
                return found if len(found) % 2 == 0 else found[:-1]
            if len(found) > 2 * SPARSE_PARTS:
                raise self.bad("a sparse map without end")
            block = self._exactly(BLOCK)
            rows, extended = block[:504], block[504]

    def _sparse_in_data(self) -> list[int]:
        """Format 1.0: decimal numbers, one per line, in the first blocks of the data."""
        text = b""
        found: list[int] = []
        wanted = 1
        while len(found) < wanted:
            if self._left < BLOCK:
                raise self.bad("a sparse map that is cut off")
            text += self._exactly(BLOCK)
            self._left -= BLOCK
            *lines, text = text.split(b"\n")
            if len(text.rstrip(b"\0")) > 20:
                raise self.bad("a broken sparse map")
            found += [self._decimal(line) for line in lines[: wanted - len(found)]] if found else []
            if not found and lines:
                wanted = 1 + 2 * self._decimal(lines[0])
                if wanted > 2 * SPARSE_PARTS:
                    raise self.bad("a sparse map without end")
                found = [self._decimal(line) for line in lines[:wanted]]
        return found[1:]

    def _decimal(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 19:
            raise self.bad(f"not a number: {printable(text[:20].decode('latin-1'))}")
        return int(text)
