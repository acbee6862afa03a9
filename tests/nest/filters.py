"""Hand-made seccomp filters for tests."""

from __future__ import annotations

import struct

ALLOW, KILL = 0x7FFF0000, 0x80000000
# x86_64, then the generic table (aarch64, riscv64)
NUMBERS = {
    "mkdir": 83, "mkdirat": 258, "chmod": 90, "fchmodat": 268, "symlink": 88, "symlinkat": 266, "sethostname": 170, "capset": 126,
    "prctl": 157, "setresuid": 117, "close_range": 436, "keyctl": 250, "unshare": 272, "seccomp": 317,
}  # fmt: skip


def instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def answering(action: int, *calls: str) -> bytes:
    """A filter that answers CALLS of x86_64 with ACTION, and allows all others."""
    program = [instruction(0x20, 0)]  # load the call's number
    for call in calls:
        program += [instruction(0x15, NUMBERS[call], 0, 1), instruction(0x06, action)]
    return b"".join([*program, instruction(0x06, ALLOW)])


def refusing(number: int, *calls: str) -> bytes:
    """A filter that fails CALLS with the errno NUMBER; 0: the calls succeed without effect."""
    return answering(0x50000 | number, *calls)


def run(program: bytes, data: bytes, order: str) -> int:
    """What a filter answers for the struct seccomp_data DATA; implements only the instructions used here."""
    at = accumulator = 0
    instructions = [struct.unpack_from(f"{order}HBBI", program, offset) for offset in range(0, len(program), 8)]
    while True:
        code, yes, no, k = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from(f"{order}I", data, k)
        elif code == 0x06:
            return k
        else:
            true = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if true else no
