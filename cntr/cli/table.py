"""The table that a report is printed from."""

from __future__ import annotations

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
        """The table in aligned columns; text that comes from a container is made printable."""
        lines = [tuple(column.upper().replace("_", " ") for column in self.columns)]
        lines += [
            tuple(printable("-" if cell is None or cell == "" else str(cell)) for cell in row) for row in self.rows
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        return "\n".join([*shown, *self.footer])

    def json(self) -> str:
        """The rows as a JSON list of objects."""
        import json

        return json.dumps([dict(zip(self.columns, row)) for row in self.rows], indent=2)
