"""``cntr replay``: plays a recording, at its own speed or another.

A terminal obeys its output: it answers queries as if somebody had typed, sets the clipboard, prints, loads fonts.
During the session that was the session's doing. But the file may have been changed since, and the viewer has another
terminal. So only output that moves the cursor and draws is passed: text, colours, positions, the alternate screen,
scrolling regions. Every string (OSC, DCS, APC, PM, SOS) and every query is dropped. At the end the terminal is
restored.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import time

from cntr.audit.behind_sudo import CallerOpener
from cntr.errors import CntrError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

LINE_LIMIT, SEQUENCE_LIMIT = 1 << 22, 256  # bytes of an event, characters of an escape sequence that is no string
LATEST = 1e9  # seconds
# ECMA-48 and xterm's ctlseqs: CSI … final byte. Cursor, erase, insert, delete, scroll, SGR, region, save and restore.
DRAWING = frozenset("ABCDEFGHIJKLMPSTXZ@`abdefmrsu")
MODES = {
    "5": False,
    "6": False,
    "7": True,
    "12": False,
    "25": True,
    "45": False,
    "47": False,
    "1047": False,
    "1049": False,
    "2026": False,
}
STRINGS = frozenset("]P_^X\x90\x98\x9d\x9e\x9f")  # after ESC, or alone
PLAIN_MODES = {"4": False, "20": False}  # insert, new line
ESCAPES = frozenset("78DEM")  # save, restore, index, next line, reverse index
CHARSETS = frozenset("()*+")
CONTROLS = frozenset("\b\t\n\v\f\r\x0e\x0f")  # without BEL, and without ENQ, which terminals answer
PLAIN = "\x1b[0m\x1b(B\x0f\r\n"  # attributes off, default character set; below what was shown


class Screen:
    """Filters output for the terminal; a sequence may arrive in pieces. modes: those that differ from the default."""

    __slots__ = ("cursor", "in_string", "modes", "pending", "region")

    def __init__(self) -> None:
        self.pending, self.region, self.cursor, self.in_string = "", False, False, False
        self.modes: set[str] = set()

    def filtered(self, text: str) -> str:
        """TEXT without sequences that do more than display."""
        text, self.pending = self.pending + text, ""
        shown, at = [], self._string(text, 0) if self.in_string else 0
        while at < len(text):
            letter = text[at]
            if letter != "\x1b" and not "\x80" <= letter <= "\x9f":
                if letter in CONTROLS or (letter >= " " and letter != "\x7f" and not "\ud800" <= letter <= "\udfff"):
                    shown.append(letter)
                at += 1
                continue
            end, kept = _sequence(text, at)
            if end < 0:
                introducer = text[at + 1 : at + 2] if letter == "\x1b" else letter
                if introducer in STRINGS:
                    self._string(text, at + 1 + (letter == "\x1b"))
                elif len(text) - at <= SEQUENCE_LIMIT:
                    self.pending = text[at:]
                break  # incomplete; if it never ends, the rest is shown as text
            if kept and end - at <= SEQUENCE_LIMIT:
                shown.append(text[at:end])
                self._remember(text[at:end])
            at = end
        return "".join(shown)

    def _string(self, text: str, at: int) -> int:
        """The index after a string of which AT is in the middle. It may never end: nothing of it is kept, and each piece read once."""
        end = _string_end(text, at)
        self.in_string = end < 0
        if end < 0 and text[at:].endswith("\x1b"):  # ST may be split
            self.pending = "\x1b"
        return len(text) if end < 0 else end

    def _remember(self, sequence: str) -> None:
        self.cursor |= sequence.endswith(" q")
        if sequence[:2] == "\x1b[" and sequence[-1] in "hlr":
            self.region |= sequence[-1] == "r"
            private, usual = ("?", MODES) if sequence[2] == "?" else ("", PLAIN_MODES)
            for mode in sequence[2 + len(private) : -1].split(";") if sequence[-1] != "r" else ():
                (self.modes.discard if usual[mode] == (sequence[-1] == "h") else self.modes.add)(private + mode)

    def restoring(self) -> str:
        """The sequences that restore the terminal."""
        usual = {**{f"?{mode}": on for mode, on in MODES.items()}, **PLAIN_MODES}
        back = "".join(f"\x1b[{mode}{'h' if usual[mode] else 'l'}" for mode in sorted(self.modes))
        back += "\x1b[0 q" if self.cursor else ""
        return back + ("\x1b7\x1b[r\x1b8" if self.region else "") + PLAIN  # setting a region moves the cursor home


def _sequence(text: str, at: int) -> tuple[int, bool]:
    """(end of the escape sequence at AT, whether it is passed); -1 if it is incomplete. 8-bit sequences are never
    passed.
    """
    # C1, which most UTF-8 terminals ignore: the start of a string would hide the text up to its end
    if text[at] != "\x1b":
        return (_string_end(text, at + 1), False) if text[at] in "\x90\x98\x9d\x9e\x9f" else (at + 1, False)
    if at + 1 == len(text):
        return -1, False
    kind = text[at + 1]
    if kind in "]P_^X":
        return _string_end(text, at + 2), False
    if kind == "[":
        return _control(text, at + 2)
    if " " <= kind <= "/":  # nF: designate a character set, …
        end = at + 2
        while end < len(text) and " " <= text[end] <= "/":
            end += 1
        return (
            (end + 1, kind in CHARSETS and end == at + 2 and text[end].isascii() and text[end].isalnum())
            if end < len(text)
            else (-1, False)
        )
    return at + 2 if kind >= " " else at + 1, kind in ESCAPES


def _string_end(text: str, at: int) -> int:
    """The index after BEL, ST (ESC backslash, or one character), CAN or SUB; -1 if there is none."""
    while at < len(text):
        if text[at] in "\x07\x9c\x18\x1a":
            return at + 1
        if text[at] == "\x1b":
            if at + 1 == len(text):
                return -1
            return at + 2 if text[at + 1] == "\\" else at
        at += 1
    return -1


def _control(text: str, at: int) -> tuple[int, bool]:
    """CSI: parameters 0-?, intermediates space-/, one final byte @-~."""
    end = at
    while end < len(text) and "0" <= text[end] <= "?":
        end += 1
    parameters, middle = text[at:end], end
    while end < len(text) and " " <= text[end] <= "/":
        end += 1
    if end == len(text):
        return -1, False
    final = text[end]
    if not "@" <= final <= "~":
        return end, False  # interrupted by a control character, which is handled separately
    if end != middle:
        return end + 1, final == "q" and text[middle:end] == " "  # the cursor's shape
    if final in "hl":
        private = parameters.startswith("?")
        known, wanted = (MODES, parameters[1:]) if private else (PLAIN_MODES, parameters)
        return end + 1, all(mode in known for mode in wanted.split(";"))
    return end + 1, final in DRAWING and all(
        len(word) <= 5 for word in parameters.split(";")
    ) and not parameters.startswith(("<", "=", ">", "?"))


def events(stream: BinaryIO, path: str) -> Iterator[tuple[float, str, str]]:
    """Yield (seconds from the beginning, kind, text) of a recording. Raises CntrError if it is not one."""
    head = _line(stream, path, 1)
    if not isinstance(head, dict) or head.get("version") != 2:
        shown, version = printable(path), head.get("version") if isinstance(head, dict) else None
        if version in (1, 3):
            hint = f"`asciinema convert -f asciicast-v2 {shown} OTHER`"
            raise CntrError(f"{shown}: not a recording in asciicast v2 but v{version}", hint)
        raise CntrError(f"{shown}: not a recording in asciicast v2", "what `cntr attach --record FILE` has written")
    number, last = 1, 0.0
    while (event := _line(stream, path, number := number + 1)) is not None:
        if not isinstance(event, list) or len(event) != 3 or not _is_time(event[0]) or not isinstance(event[2], str):
            raise _broken(path, number)
        if event[0] < last:
            raise _broken(path, number)
        last = float(event[0])
        yield last, str(event[1]), event[2]


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and -LATEST < value < LATEST


def _line(stream: BinaryIO, path: str, number: int) -> object:
    line = stream.readline(LINE_LIMIT)
    if not line:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        if not line.endswith(b"\n") and len(line) < LINE_LIMIT:
            return None  # the last line is incomplete: the session was killed
        raise _broken(path, number) from None


def _broken(path: str, number: int) -> CntrError:
    return CntrError(f"{printable(path)}: line {number}: not an event of asciicast v2", "the file has been damaged")


def run(path: str, speed: float, idle_limit: float) -> int:
    """Show PATH on stdout. speed: a factor; idle_limit: longest pause in seconds. Raises CntrError."""
    fd = _open(path)
    screen, out = Screen(), sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")
    with open(fd, "rb") as stream:
        begun, last = time.monotonic(), 0.0
        try:
            for at, kind, text in events(stream, path):
                begun -= max(0.0, at - last - idle_limit) / speed
                pause, last = (
                    min(begun + at / speed - time.monotonic(), idle_limit / speed),
                    at,
                )  # by a rounded number
                if pause > 0:
                    out.flush()
                    time.sleep(pause)
                if kind == "o":
                    out.write(screen.filtered(text))
                    out.flush()
        finally:
            out.write(screen.restoring() if out.isatty() else "")
            out.flush()
    return 0


def _open(path: str) -> int:
    try:
        with CallerOpener():
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(22, "not a regular file")
    except OSError as error:
        raise CntrError(
            f"{printable(path)}: {error.strerror}", "what `cntr attach --record FILE` has written"
        ) from None
    return fd
