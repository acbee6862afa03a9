"""ELF: the dynamic linker, needed libraries, and libraries that a program loads by name at run time."""

from __future__ import annotations

import re
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry, Tree

NAME = "elf"
SUMMARY = "ELF interpreter, needed libraries by rpath, runpath, ld.so.conf and the usual directories, names given to dlopen(3)"
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RPATH, DT_RUNPATH = 1, 5, 10, 15, 29
USUAL = ("/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib", "/lib32", "/usr/lib32")
_DLOPEN = re.compile(rb"lib[A-Za-z0-9_+.-]{1,60}\.so\.[0-9][0-9.]{0,9}")
# Programs that load by tables of their own (basics), or libraries for desktops only.
_OWN_NAMES = ("/libc.so.", "/jvm/", "/jre/", "/openjdk")
_MOST = 128 << 20  # bytes of a file that are searched for names
_TABLE = 1 << 20  # bytes of one table
_LONGEST, _NAMES, _PATHS = (
    4096,
    1024,
    256,
)  # limits: bytes of a name, libraries and directories of a file; far beyond real ones


class Elf:
    """What the dynamic linker would read from a file. Any number in it may be wrong."""

    def __init__(self, tree: Tree, path: str) -> None:
        """Read it. Raises ValueError if it is not an ELF file."""
        self.needed: list[str] = []
        self.paths: list[str] = []
        self.names: frozenset[str] = frozenset()  # of symbols, defined and undefined
        self.interpreter = ""
        head = tree.read(path, 64)
        if head[:4] != b"\x7fELF" or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise ValueError("not ELF")
        self.wide, self.order = head[4] == 2, "<" if head[5] == 1 else ">"
        self.machine = struct.unpack_from(f"{self.order}H", head, 18)[0]
        try:
            self._read(tree, path, head)
        except (struct.error, ValueError):
            pass  # what could be read is used

    def _read(self, tree: Tree, path: str, head: bytes) -> None:
        at, size, count = (
            (*struct.unpack_from(f"{self.order}Q", head, 32), *struct.unpack_from(f"{self.order}HH", head, 54))
            if self.wide
            else (*struct.unpack_from(f"{self.order}I", head, 28), *struct.unpack_from(f"{self.order}HH", head, 42))
        )
        table = tree.read(path, min(size * count, _TABLE), at)
        segments = [self._segment(table, number * size) for number in range(min(count, len(table) // max(size, 1)))]
        for kind, offset, _, length in segments:
            if kind == PT_INTERP:
                self.interpreter = tree.read(path, min(length, 4096), offset).rstrip(b"\0").decode("utf-8", "replace")
        loads = [(address, offset, length) for kind, offset, address, length in segments if kind == PT_LOAD]
        dynamic = next(((offset, length) for kind, offset, _, length in segments if kind == PT_DYNAMIC), None)
        if dynamic is not None:
            self._dynamic(tree, path, tree.read(path, min(dynamic[1], _TABLE), dynamic[0]), loads)

    def _segment(self, table: bytes, at: int) -> tuple[int, int, int, int]:
        """(type, file offset, address, size in the file) of a program header."""
        if self.wide:
            kind, _, offset, address, _, length = struct.unpack_from(f"{self.order}IIQQQQ", table, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(f"{self.order}IIIII", table, at)
        return kind, offset, address, length

    def _dynamic(self, tree: Tree, path: str, data: bytes, loads: list[tuple[int, int, int]]) -> None:
        step, form = (16, "qQ") if self.wide else (8, "iI")
        rows = [struct.unpack_from(f"{self.order}{form}", data, at) for at in range(0, len(data) - step + 1, step)]
        values = dict(reversed(rows))
        address = values.get(DT_STRTAB, 0)
        start = next((o + address - a for a, o, length in loads if a <= address < a + length), None)
        if start is None:
            return
        strings = tree.read(path, min(values.get(DT_STRSZ, 0), 16 << 20), start)

        def text(offset: int) -> str:
            return strings[offset : offset + _LONGEST].partition(b"\0")[0].decode("utf-8", "replace")

        self.names = frozenset(strings.decode("ascii", "replace").split("\0"))
        self.needed = [text(value) for value in [value for tag, value in rows if tag == DT_NEEDED][:_NAMES]]
        paths = [value for tag, value in rows if tag in (DT_RPATH, DT_RUNPATH)][:_PATHS]
        self.paths = [p for value in paths for p in text(value).split(":") if p][:_PATHS]


def parse(tree: Tree, path: str) -> Elf | None:
    """The file's dynamic section; None if it is not an ELF file."""
    try:
        return Elf(tree, path)
    except ValueError:
        return None


def directories(context: Context) -> list[str]:
    """The library search path: ld.so.conf's directories, LD_LIBRARY_PATH, the defaults, each with its triplets."""

    def make() -> list[str]:
        found = context.environment().get("LD_LIBRARY_PATH", "").split(":")
        found += _configured(context.tree, "/etc/ld.so.conf", 0, set())
        found += [
            part
            for text in ("/etc/ld-musl-x86_64.path", "/etc/ld-musl-aarch64.path")
            for part in context.tree.text(text).split()
        ]
        for directory in USUAL:
            found.append(directory)
            real, _ = context.tree.resolve(directory)
            found += [
                f"{directory}/{p.rpartition('/')[2]}"
                for p in context.tree.children(real)
                if p.endswith(("-linux-gnu", "-linux-gnueabihf", "-linux-musl"))
            ]
        return [path for path in dict.fromkeys(found) if path.startswith("/")]

    return context.once("elf directories", make)  # type: ignore[no-any-return]


def _configured(tree: Tree, path: str, depth: int, seen: set[str]) -> list[str]:
    """The directories in an ld.so.conf(5) and its includes."""
    import fnmatch

    found = []
    for raw in tree.text(path).splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith("include ") and depth < 4:
            pattern = line[8:].strip()
            if pattern in seen:  # they may include each other any number of times
                continue
            seen.add(pattern)
            real, _ = tree.resolve(pattern.rpartition("/")[0] or "/etc")
            for one in sorted(tree.children(real)) if real else ():
                if fnmatch.fnmatchcase(one.rpartition("/")[2], pattern.rpartition("/")[2]):
                    found += _configured(tree, one, depth + 1, seen)
        elif line.startswith("/"):
            found.append(line)
    return found


def find(context: Context, name: str, places: list[str], machine: int) -> list[str]:
    """The library of that name and machine in the first of PLACES that has it, with its variants for newer processors."""
    if "/" in name:
        return [name]
    for place in places:
        path = f"{place}/{name}"
        real, _ = context.tree.resolve(path)
        if not real or not context.tree.entries[real].is_file:
            continue
        head = context.tree.read(real, 20)
        if (
            head[:4] == b"\x7fELF"
            and struct.unpack_from("<H" if head[5:6] == b"\x01" else ">H", head, 18)[0] == machine
        ):
            caps, _ = context.tree.resolve(f"{place}/glibc-hwcaps")
            return [path, *(f"{one}/{name}" for one in (context.tree.children(caps) if caps else ()))]
    return []


def follows(context: Context, path: str, entry: Entry) -> Found:
    """What the dynamic linker loads for an ELF file."""
    if not entry.is_file or entry.size < 52:
        return
    elf = parse(context.tree, path)
    if elf is None:
        return
    if elf.interpreter:
        yield elf.interpreter, "the dynamic linker"
    here = path.rpartition("/")[0]
    own = [p.replace("${ORIGIN}", here).replace("$ORIGIN", here) for p in elf.paths]
    inherited = context.once("elf inherited", dict)
    places = [*own, *inherited.get(path, ()), *directories(context)]
    for name in elf.needed:
        for found in find(context, name, places, elf.machine):
            if own:
                real, _ = context.tree.resolve(found)
                inherited.setdefault(real, own)
            yield found, f"needed as {name}"
    if entry.size <= _MOST and not any(part in path for part in _OWN_NAMES):
        for name in sorted(loaded_by_name(context.tree.read(path, _MOST)) - set(elf.needed)):
            for found in find(context, name, places, elf.machine):
                yield found, f"loaded by name as {name}"


def loaded_by_name(data: bytes) -> set[str]:
    """The strings in a program that are versioned library names: arguments of dlopen(3)."""
    found, at = set(), data.find(b".so.")
    while at >= 0:
        start = data.rfind(b"\0", max(0, at - 64), at) + 1
        end = data.find(b"\0", at, at + 16)
        if start and end > 0 and _DLOPEN.fullmatch(data, start, end):
            found.add(data[start:end].decode())
        at = data.find(b".so.", at + 4)
    return found
