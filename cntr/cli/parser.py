"""The command line's parser, and the classes of its table of commands and options.

argparse is not used: importing it takes 10–13 ms, half the time of an attach (``python -X importtime``).
"""

from __future__ import annotations

from cntr.errors import UsageError, printable


class Option:
    """One option: its names, the name of its value ("" for a flag), the choices, and its help."""

    __slots__ = ("choices", "help", "key", "names", "repeat", "value")

    def __init__(self, names: str, value: str, help: str, *, choices: str = "", repeat: bool = False) -> None:
        """names: e.g. ``-e --env``; the last one is the key; choices: the values allowed."""
        self.names, self.value, self.help, self.repeat = names.split(), value, help, repeat
        self.choices = choices.split()
        self.key = self.names[-1].lstrip("-").replace("-", "_")


class Subcommand:
    """One command: its positional words, options, one or two examples, and details that one line of help cannot hold."""

    __slots__ = ("details", "examples", "help", "name", "options", "positional", "takes_command")

    def __init__(
        self,
        name: str,
        positional: str,
        help: str,
        options: tuple[Option, ...],
        examples: str,
        *,
        takes_command: bool = False,
        details: str = "",
    ) -> None:
        """positional: its words, ``[NAME]`` if optional, ``[NAME]…`` for any number; takes_command: ``-- CMD…``."""
        self.name, self.positional, self.help, self.options = name, positional.split(), help, options
        self.examples, self.takes_command, self.details = examples, takes_command, details

    def is_open(self) -> bool:
        """Whether it takes any number of positional words."""
        return self.positional[-1:] != [] and self.positional[-1].endswith("…")


class Parsed:
    """The parsed command line: the command, {key: value}, the positional words, the words after ``--``, and the line
    itself.
    """

    __slots__ = ("argv", "command", "line", "values", "words")

    def __init__(self, command: Subcommand) -> None:
        self.command = command
        self.values: dict[str, object] = {}
        self.words: list[str] = []
        self.argv: list[str] = []
        self.line: list[str] = []

    def flag(self, key: str) -> bool:
        """Whether a flag was given."""
        return key in self.values

    def text(self, key: str, default: str = "") -> str:
        """The value of an option."""
        value = self.values.get(key, default)
        return str(value)

    def texts(self, key: str) -> list[str]:
        """The values of a repeatable option."""
        value = self.values.get(key, [])
        return list(value) if isinstance(value, list) else []


def parse(argv: list[str], commands: tuple[Subcommand, ...], common: tuple[Option, ...]) -> Parsed:
    """Parse the command line after the program's name. common: options that every command takes. Raises UsageError."""
    name = argv[0]
    command = next((known for known in commands if known.name == name), None)
    if command is None:
        from cntr.cli import meant

        raise UsageError(f"{printable(name)}: no such command", meant.hint(name, [known.name for known in commands]))
    parsed = Parsed(command)
    parsed.line = list(argv)
    rest = argv[1:]
    known = {name: option for option in (*command.options, *common) for name in option.names}
    while rest:
        word = rest.pop(0)
        if word == "--":
            if command.positional and not command.takes_command:
                parsed.words += rest
            else:
                _take_command(parsed, rest)
            break
        if word.startswith("-") and len(word) > 1:
            _take_option(parsed, known, word, rest)
        elif command.takes_command and len(parsed.words) == len(command.positional) and not command.is_open():
            _take_command(parsed, [word, *rest])
            break
        else:
            parsed.words.append(word)
    if not parsed.flag("help"):
        _check_words(parsed)
    return parsed


def _take_command(parsed: Parsed, words: list[str]) -> None:
    if not parsed.command.takes_command:
        raise UsageError(f"{parsed.command.name} takes no command after --", f"see `cntr {parsed.command.name} --help`")
    if not words:
        raise UsageError("no command after --", "leave -- out for a shell")
    parsed.argv = words


def _take_option(parsed: Parsed, known: dict[str, Option], word: str, rest: list[str]) -> None:
    # -u=app is -u app, as in docker
    name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], "", word[2:].removeprefix("="))
    option = known.get(name)
    see = f"`cntr {parsed.command.name} --help` lists them"
    if option is None:
        raise UsageError(f"{parsed.command.name}: no such option: {printable(name)}", see)
    if not option.value:
        if equals:
            raise UsageError(f"{name} takes no value", see)
        parsed.values[option.key] = True
        if value:  # -vh: short flags together
            _take_option(parsed, known, f"-{value}", rest)
        return
    if not (equals or value):
        if not rest:
            raise UsageError(f"{name} needs a value: {option.value}", see)
        value = rest.pop(0)
    if option.choices and value not in option.choices:
        raise UsageError(f"{name} {printable(value)}: not one of {', '.join(option.choices)}", see)
    if option.repeat:
        parsed.values[option.key] = [*parsed.texts(option.key), value]
    elif option.key in parsed.values:
        raise UsageError(f"{name} is given twice", "say it once")
    else:
        parsed.values[option.key] = value


def _check_words(parsed: Parsed) -> None:
    command = parsed.command
    needed = [name for name in command.positional if not name.startswith("[")]
    if len(parsed.words) < len(needed):
        missing = needed[len(parsed.words)]
        hint = "`cntr ps` lists running containers" if missing == "TARGET" else f"see `cntr {command.name} --help`"
        raise UsageError(f"{command.name}: {missing} is missing", hint)
    if len(parsed.words) > len(command.positional) and not command.is_open():
        raise UsageError(
            f"{command.name}: unexpected word: {printable(parsed.words[-1])}",
            f"it takes {' '.join(command.positional) or 'none'}: see `cntr {command.name} --help`",
        )
