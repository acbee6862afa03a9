"""A strict reader for the subset of TOML used in /etc/cntr.conf. It works on every Python and knows each key's line.

The subset: comments, [tables], [[arrays of tables]], and keys with true, false, a single-line string, or an array of
such strings. Anything else is an error. What is accepted has the meaning it has in TOML (tests/audit/test_policy.py
compares with tomllib).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Value = Union[bool, str, list[str]]

BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


class TomlError(ValueError):
    """A syntax error. line: counted from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


class Table:
    """A table: its name, whether it is an array element, its line, and {key: (value, line)}."""

    __slots__ = ("items", "line", "name", "repeated")

    def __init__(self, name: str, line: int, *, repeated: bool) -> None:
        self.name, self.line, self.repeated = name, line, repeated
        self.items: dict[str, tuple[Value, int]] = {}


def parse(text: str) -> list[Table]:
    """The tables in order. The first has no name and holds the keys before any header. Raises TomlError."""
    reader = _Reader(text)
    tables = [Table("", 1, repeated=False)]
    while reader.skip_lines():
        line = reader.line
        if reader.next() == "[":
            table = reader.head()
            if any(known.name == table.name and not (known.repeated and table.repeated) for known in tables):
                raise TomlError(line, f"[{table.name}] is there already")
            tables.append(table)
        else:
            key = reader.key()
            reader.blanks()
            reader.expect("=", f"`{key}`: no = after it")
            if key in tables[-1].items:
                raise TomlError(line, f"`{key}` is there already")
            reader.blanks()
            tables[-1].items[key] = reader.value(key), line
        reader.end_of_line()
    return tables


class _Reader:
    """The position in the text."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text.replace("\r\n", "\n"), 0, 1
        for number, row in enumerate(self.text.split("\n"), 1):
            if any(
                letter != "\t" and (letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff")
                for letter in row
            ):
                raise TomlError(number, "a control character, or no UTF-8")

    def next(self) -> str:
        """The current character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        found = self.next()
        self.at += 1
        self.line += found == "\n"
        return found

    def blanks(self) -> None:
        while self.next() and self.next() in " \t":
            self.at += 1

    def expect(self, word: str, message: str) -> None:
        if not self.text.startswith(word, self.at):
            raise TomlError(self.line, message)
        self.at += len(word)

    def comment(self) -> None:
        if self.next() == "#":
            while self.next() not in ("", "\n"):
                self.at += 1

    def skip_lines(self) -> bool:
        """Skip to the next key or header; False at the end."""
        while True:
            self.blanks()
            self.comment()
            if self.next() != "\n":
                return bool(self.next())
            self.take()

    def end_of_line(self) -> None:
        self.blanks()
        self.comment()
        if self.next() not in ("", "\n"):
            raise TomlError(self.line, "more than one thing on a line")

    def key(self) -> str:
        begin = self.at
        while self.next() and self.next() in BARE:
            self.at += 1
        if begin == self.at:
            raise TomlError(self.line, "no key: a word of letters, digits, - and _")
        return self.text[begin : self.at]

    def head(self) -> Table:
        line, repeated = self.line, self.text.startswith("[[", self.at)
        self.at += 1 + repeated
        self.blanks()
        name = self.key()
        self.blanks()
        self.expect("]]" if repeated else "]", "a head is [name] or [[name]]")
        return Table(name, line, repeated=repeated)

    def value(self, key: str) -> Value:
        if self.next() == "[":
            return self.array(key)
        for word, value in (("true", True), ("false", False)):
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        return self.string(f"`{key}`: neither true, false, a string nor an array of strings")

    def array(self, key: str) -> list[str]:
        found: list[str] = []
        self.take()
        while True:
            self.skip_lines()
            if self.next() == "]":
                self.take()
                return found
            found.append(self.string(f"`{key}`: its array has something else than strings in it, or no ]"))
            self.skip_lines()
            if self.next() != "]":
                self.expect(",", f"`{key}`: no , between two strings, or no ]")

    def string(self, otherwise: str) -> str:
        quote, line = self.take(), self.line
        if quote not in ('"', "'"):
            raise TomlError(line, otherwise)
        if self.text.startswith(quote * 2, self.at):
            raise TomlError(line, "a string of several lines")
        found = []
        while (letter := self.take()) != quote:
            if letter in ("", "\n"):
                raise TomlError(line, f"a string without its end: {quote} is missing")
            found.append(self.escape() if letter == "\\" and quote == '"' else letter)
        return "".join(found)

    def escape(self) -> str:
        letter = self.take()
        if letter in ESCAPES:
            return ESCAPES[letter]
        digits = self.text[self.at : self.at + {"u": 4, "U": 8}.get(letter, 0)]
        if digits and len(digits) in (4, 8) and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            number = int(digits, 16)
            if number < 0xD800 or 0xDFFF < number < 0x110000:
                self.at += len(digits)
                return chr(number)
        raise TomlError(self.line, f"\\{letter}: no escape of TOML's")
