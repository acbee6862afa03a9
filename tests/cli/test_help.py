"""Help, versions, and what is generated from the table of options."""

from __future__ import annotations

import pytest

from cntr import __version__
from cntr.cli.options import COMMANDS
from tests.cli.run import cntr


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
