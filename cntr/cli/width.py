"""Text for a terminal as wide as it is: lines are broken between words. Nothing is broken for a file or a pipe."""

from __future__ import annotations

import os

LEAST = 30  # columns below which nothing would be won
LEAST_CELL = 12


def of_terminal() -> int:
    """The columns of the terminal that stdout is; 0 if it is none, or too narrow."""
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        return 0
    return columns if columns >= LEAST else 0


def fitted(text: str, columns: int) -> str:
    """TEXT with each line that is too long broken, below the column that its explanation begins in; 0: as it is.

    The rest of a broken line flows into the next one, if that belongs to the same paragraph.
    """
    if not columns:
        return text
    made: list[str] = []
    rest, hanging = "", -1
    for line in text.split("\n"):
        bare = line.lstrip(" ")
        indent = len(line) - len(bare)
        if rest and (not bare or indent != hanging):
            made.append(rest)
            rest = ""
        if rest:
            line = f"{rest} {bare}"
        elif (gap := line.find("  ", indent)) > 0:
            hanging = len(line) - len(line[gap:].lstrip(" "))
        elif indent != hanging:
            hanging = indent + 4 * bool(indent)
        if len(line) <= columns and not rest:
            made.append(line)
            continue
        *whole, rest = _broken(line, columns, min(hanging, columns // 2))
        made += whole
    return "\n".join([*made, rest] if rest else made)


def _broken(line: str, columns: int, hanging: int) -> list[str]:
    """LINE in pieces of at most COLUMNS, but for words that are longer; all but the first are indented by HANGING."""
    pieces: list[str] = []
    while len(line) > columns:
        indent = hanging if pieces else len(line) - len(line.lstrip(" "))
        at = line.rfind(" ", indent + 1, columns + 1)
        at = at if at > indent and line[:at].strip() else line.find(" ", columns)
        if at < 0:
            break
        pieces.append(line[:at].rstrip())
        line = " " * hanging + line[at:].lstrip()
    return [*pieces, line]


def cells(widths: list[int], columns: int) -> list[int]:
    """The widths of a table's columns, two apart, made to fit; as they are for 0, or if they cannot."""
    fitting = list(widths)
    while columns and sum(fitting) + 2 * (len(fitting) - 1) > columns:
        widest = max(fitting)
        if widest <= LEAST_CELL:
            return widths
        fitting[fitting.index(widest)] -= 1
    return fitting


def in_cell(text: str, width: int) -> list[str]:
    """TEXT in lines of at most WIDTH, broken between words where it has any."""
    lines = []
    for piece in _broken(text, width, 0):
        lines += [piece[at : at + width] for at in range(0, len(piece), width)] or [""]
    return lines
