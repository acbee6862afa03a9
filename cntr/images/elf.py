"""Reads from an ELF file (elf(5)) what decides whether it can start: machine, interpreter, needed libraries. Everything
is bounded.
"""

from __future__ import annotations

import os
import struct

from cntr.linux.numbers import UNAME

MACHINES = {
    **{
        3: "i386",
        8: "mips",
        20: "ppc",
        21: "ppc64",
        22: "s390x",
        40: "arm",
        62: "x86_64",
        183: "aarch64",
        243: "riscv",
    },
    258: "loongarch",
}
RUNS = {  # uname(2)'s machine → machines whose programs it runs
    "x86_64": ("x86_64", "i386"),
    **{"aarch64": ("aarch64", "arm"), "ppc64le": ("ppc64",), "riscv64": ("riscv",), "loongarch64": ("loongarch",)},
    **{"armv7l": ("arm",), "armv6l": ("arm",), "i686": ("i386",)},
}
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 1, 5, 15, 29
HEADERS, DYNAMIC, TEXT = 256, 1 << 16, 4096
NAMES, PATHS = 1024, 256  # libraries, and directories to search


class NotElf(Exception):
    """Not an ELF file, or a broken one; the message says why."""


class Elf:
    """kind: e_type, 2 for a program, 3 for a position-independent one or a library; machine: a name in MACHINES.

    bits: 32 or 64; interpreter: "" for a static program; needed, paths: from the dynamic section.
    """

    __slots__ = ("bits", "interpreter", "kind", "machine", "needed", "paths")

    def __init__(self, fd: int) -> None:
        """Read it with pread(2). Raises NotElf, OSError."""
        head = os.pread(fd, 64, 0)
        if head[:4] != b"\x7fELF" or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise NotElf("not an ELF file")
        self.bits, order = 32 * head[4], "<" if head[5] == 1 else ">"
        self.kind, number = struct.unpack_from(order + "HH", head, 16)
        self.machine = MACHINES.get(number, f"machine {number}")
        wide = self.bits == 64
        if wide and len(head) < 64:
            raise NotElf("cut off")
        offset = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        if count > HEADERS or size < (56 if wide else 32) or size > 1024:
            raise NotElf("broken program headers")
        table = _read(fd, size * count, offset)
        if len(table) < size * count:
            raise NotElf("an ELF file that is cut off")
        rows = [self._header(table, at, order) for at in range(0, len(table) - (55 if wide else 31), size)]
        if any(kind == PT_LOAD and start + length > os.fstat(fd).st_size for kind, start, _, length in rows):
            raise NotElf("an ELF file that is cut off")
        self.interpreter = ""
        self.needed: list[str] = []
        self.paths: list[str] = []
        for kind, start, _, length in rows:
            if kind == PT_INTERP:
                self.interpreter = _text(_read(fd, min(length, TEXT), start), 0)
            elif kind == PT_DYNAMIC and not self.needed:
                self._dynamic(fd, _read(fd, min(length, DYNAMIC), start), order, rows)

    def _header(self, table: bytes, at: int, order: str) -> tuple[int, int, int, int]:
        """(type, offset, address, size in the file) of a program header."""
        if self.bits == 64:
            kind, _, offset, address, _, length = struct.unpack_from(order + "IIQQQQ", table, at)
        else:
            kind, offset, address, _, length = struct.unpack_from(order + "IIIII", table, at)
        return kind, offset, address, length

    def _dynamic(self, fd: int, data: bytes, order: str, rows: list[tuple[int, int, int, int]]) -> None:
        step = 16 if self.bits == 64 else 8
        form = order + ("qQ" if self.bits == 64 else "iI")
        entries = [struct.unpack_from(form, data, at) for at in range(0, len(data) - step + 1, step)]
        table = next((value for tag, value in entries if tag == DT_STRTAB), 0)
        where = next(
            (
                offset + table - start
                for kind, offset, start, length in rows
                if kind == PT_LOAD and start <= table < start + length
            ),
            -1,
        )
        if where < 0:
            return
        for tag, value in entries[:4096]:
            if tag in (DT_NEEDED, DT_RPATH, DT_RUNPATH) and value < 1 << 32:
                text = _text(_read(fd, TEXT, where + value), 0)
                if tag == DT_NEEDED:
                    self.needed.append(text)
                else:
                    self.paths += text.split(":")
                if len(self.needed) > NAMES or len(self.paths) > PATHS:
                    raise NotElf("an ELF file that needs more libraries than any")


def _read(fd: int, size: int, offset: int) -> bytes:
    return os.pread(fd, size, offset) if 0 <= offset < 1 << 62 else b""


def _text(data: bytes, start: int) -> str:
    return os.fsdecode(data[start:].partition(b"\0")[0])


def runs_here(machine: str) -> bool:
    """Whether this machine's processor runs MACHINE's programs."""
    own = UNAME
    return machine in RUNS.get(own, (own,))
