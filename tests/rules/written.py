"""What of the documentation is written from the code's tables; ``python -m tests.rules.written`` writes it anew."""

from __future__ import annotations

import re

from cntr.cli.options import COMMANDS
from tests.rules import source


def commands() -> str:
    """The table of commands of docs/cntr.1.md."""
    rows = [
        f"| `cntr {' '.join([c.name, *c.positional])}{' [-- CMD…]' if c.takes_command else ''}` | {c.help} |"
        for c in COMMANDS
    ]
    return "\n".join(["| command | |", "|---|---|", *rows])


WRITTEN = {"docs/cntr.1.md": commands}
MARKS = re.compile(r"(<!-- written by tests/rules/written.py -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write each between its marks."""
    for name, text in WRITTEN.items():
        path = source.ROOT / name
        path.write_text(MARKS.sub(lambda found, text=text: found[1] + text() + found[3], path.read_text()))


if __name__ == "__main__":
    main()
