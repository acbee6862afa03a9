"""The table that a report is printed from."""

from __future__ import annotations

from cntr.cli import width
from cntr.errors import printable


class Report:
    """A table with a header, printed as text or JSON.

    status: the exit status; footer: lines below the table; elsewhere: the machine that Docker's containers are on, ""
    for this one.
    """

    __slots__ = ("columns", "elsewhere", "footer", "rows", "status")

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.rows: list[tuple[object, ...]] = []
        self.footer: list[str] = []
        self.status, self.elsewhere = 0, ""

    def add(self, *cells: object) -> None:
        """Add a row."""
        self.rows.append(cells)

    def text(self) -> str:
        """The table in aligned columns, no wider than a terminal is; text that comes from a container is made printable."""
        lines = [tuple(column.upper().replace("_", " ") for column in self.columns)]
        lines += [
            tuple(printable("-" if cell is None or cell == "" else str(cell)) for cell in row) for row in self.rows
        ]
        columns = width.of_terminal()
        widths = width.cells([max(len(line[i]) for line in lines) for i in range(len(self.columns))], columns)
        shown = []
        for line in lines:
            cells = [width.in_cell(cell, size) for cell, size in zip(line, widths)]
            for row in range(max(len(cell) for cell in cells)):
                parts = [(cell[row] if row < len(cell) else "").ljust(size) for cell, size in zip(cells, widths)]
                shown.append("  ".join(parts).rstrip())
        return "\n".join([*shown, *(width.fitted(line, columns) for line in self.footer)])

    def json(self) -> str:
        """The rows as a JSON list of objects."""
        import json

        return json.dumps([dict(zip(self.columns, row)) for row in self.rows], indent=2)
