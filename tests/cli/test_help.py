"""Help, versions, and what is generated from the table of options."""

from __future__ import annotations

import sys

import pytest

from cntr import __version__
from cntr.cli import manual, width
from cntr.cli.options import COMMANDS
from cntr.cli.table import Report
from tests.cli.run import cntr
from tests.nest.tty import Terminal


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_the_overview_names_every_command(word):
    done = cntr(word)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"  {command.name}" in done.stdout
        assert command.help in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself(command):
    done = cntr(command.name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: cntr {command.name} ")
    for option in command.options:
        for name in option.names:
            assert name in done.stdout
        for choice in option.choices:
            assert choice in done.stdout
    for example in command.examples.splitlines():
        assert example in done.stdout
    assert done.stdout == cntr("help", command.name).stdout


def test_help_wins_over_what_is_missing():
    assert cntr("attach", "-h").returncode == 0
    assert cntr("attach", "x", "--read-only", "-vh").stdout.startswith("Usage: cntr attach")


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version(word):
    assert cntr(word).stdout == f"cntr {__version__}\n"


def test_what_follows_the_dashes_is_the_commands_own():
    """Such as --help after --."""
    done = cntr("attach", "no-such-container", "--", "ls", "--help")
    assert done.returncode == 125
    assert "Usage" not in done.stdout


# --- on a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [30, 55, 80, 100, 200])
@pytest.mark.parametrize("command", [None, *COMMANDS], ids=lambda command: command.name if command else "overview")
def test_no_word_is_broken_where_a_line_is_too_long(command, columns):
    whole = manual.usage(command) if command else manual.overview()
    lines = width.fitted(whole, columns).split("\n")
    assert " ".join(lines).split() == whole.split()
    for line in lines:
        assert len(line) <= columns or " " not in line.strip() or line in whole.split("\n"), line
    for name, *explained in (line.split("  ") for line in whole.splitlines() if line.startswith("  -")):
        assert explained, name
    if command and len(lines) > len(whole.splitlines()) and columns == 80:
        begins = {len(line) - len(line.lstrip()) for line in lines if line.startswith("          ")}
        names = next(line for line in lines if line.startswith("  -h, --help"))
        assert names.index("show this help") in begins, "what is broken goes on below its beginning"


def test_without_a_terminal_nothing_is_broken():
    assert width.fitted("x " * 500, 0) == "x " * 500


@pytest.mark.parametrize(
    ("words", "end"),
    [("doctor", "engine gvisor +[^ ]+"), ("attach --help", "by signal N"), ("--help", "COMMAND --help` says more")],
)
def test_a_terminal_breaks_nothing_itself(words, end):
    with Terminal(sys.executable, "-m", "cntr", *words.split()) as terminal:
        shown = terminal.wait_for(end, 60).string.splitlines()
    assert max(len(line) for line in shown) <= 80
    assert len(shown) > 20


def test_a_table_is_made_narrower_column_by_column():
    report = Report("name", "what", "why")
    report.add("web", "a word " * 20, "x" * 70)
    report.add("db", "-", "because")
    wide = report.text()
    assert [line.index(word) for line, word in zip(wide.splitlines(), ("WHY", "xxx", "because"))] == [148] * 3
    for columns in (60, 80, 120):
        widths = width.cells([4, 140, 70], columns)
        assert sum(widths) + 4 == columns
        assert min(widths) == 4, "what is short stays whole"
        assert " ".join(width.in_cell(("a word " * 20).strip(), widths[1])) == ("a word " * 20).strip()
        assert "".join(width.in_cell("x" * 70, widths[2])) == "x" * 70
        assert all(len(part) <= widths[2] for part in width.in_cell("x" * 70 + " yy", widths[2]))
    assert width.cells([12, 12, 12], 20) == [12, 12, 12], "too narrow for all: the terminal breaks it"
