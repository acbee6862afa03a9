"""A static program of 138 bytes that waits for ever: the whole content of a *scratch* image. Needs no compiler."""

from __future__ import annotations

import os
import struct

# ppoll(NULL, 0, NULL, NULL) in a loop. EM_X86_64 = 62, EM_AARCH64 = 183 (elf(5)).
CODE = {
    "x86_64": (62, bytes.fromhex("31ff 31f6 31d2 4531d2 b80f010000 0f05 ebee")),
    "aarch64": (183, bytes.fromhex("000080d2 010080d2 020080d2 030080d2 280980d2 010000d4 faffff17")),
}
BASE = 0x400000
HEADERS = 64 + 56


def static_program(machine: str | None = None) -> bytes:
    """The ELF file for MACHINE (uname -m; this one's by default)."""
    number, code = CODE[machine or os.uname().machine]
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, BASE + HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    size = HEADERS + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 0x1000)
    return ident + header + segment + code


def greedy_program(headers: int = 255, needed: int = 4095) -> bytes:
    """150 kB that claim to need a million libraries with names of four thousand characters: one
    string, named again and again.
    """
    table = 64 + 56 * (headers + 1)
    dynamic = struct.pack("<qQ", 5, 0x1000) + struct.pack("<qQ", 1, 8) * needed + struct.pack("<qQ", 29, 8) * needed
    dynamic += struct.pack("<qQ", 10, 1 << 40)  # DT_STRSZ
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, headers + 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, table + len(dynamic), 0x1000, 0, 8192, 8192, 0)
    return (
        head + load + struct.pack("<IIQQQQQQ", 2, 4, table, 0, 0, len(dynamic), 0, 8) * headers + dynamic + b"A" * 9000
    )
