"""``python -m tests.rules.wrap`` wraps prose at 100 columns, and leaves tables, code and generated text alone."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from tests.rules import source

WIDTH = 100
GENERATED = ("compliance.md", "performance.md", "study.md", "CHANGELOG.md")
PAGES = [
    page
    for page in (*sorted(source.ROOT.glob("*.md")), *sorted((source.ROOT / "docs").glob("*.md")))
    if page.name not in GENERATED
]
_KEPT = re.compile(r"\||#|<!--|\[!|---")
_ITEM = re.compile(r"\s*([-*]|\d+\.)\s+")


def wrapped(text: str) -> str:
    """TEXT with each paragraph and list item filled; a code span is not broken."""
    lines: list[str] = []
    paragraph: list[str] = []
    first = rest = ""
    is_code = False

    def end() -> None:
        joined = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), " ".join(map(str.strip, paragraph)))
        filled = textwrap.wrap(
            joined, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )
        lines.extend(line.replace("\0", " ") for line in filled)
        paragraph.clear()

    for line in text.split("\n"):
        word = line.strip()
        fence = word.startswith("```")
        if fence or is_code or not word or _KEPT.match(word) or (line.startswith("    ") and not paragraph):
            end()
            lines.append(line)
            is_code ^= fence
        elif item := _ITEM.match(line):
            end()
            first, rest = item[0], " " * len(item[0])
            paragraph.append(line[item.end() :])
        else:
            if not paragraph:
                first = rest = line[: len(line) - len(line.lstrip())]
            paragraph.append(line)
    end()
    return "\n".join(lines)


def too_long(page: Path) -> list[int]:
    """Lines that are too long and could be broken."""
    found, is_code = [], False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        is_code ^= line.startswith("```")
        breakable = " " in re.sub(r"`[^`]*`|\S+$", "", line.strip())
        if len(line) > WIDTH and not is_code and not line.startswith("|") and breakable:
            found.append(number)
    return found


if __name__ == "__main__":
    for path in PAGES:
        if too_long(path):
            path.write_text(wrapped(path.read_text()))
