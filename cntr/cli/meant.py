"""Which command is meant by a word that is none: a misspelled one, another tool's word, or the name of a container."""

from __future__ import annotations

import difflib

from cntr.errors import printable

OTHERS_WORDS = {
    **dict.fromkeys(("shell", "sh", "enter", "debug", "join"), "attach"),
    **dict.fromkeys(("ls", "list"), "ps"),
    **dict.fromkeys(("port-forward", "port"), "forward"),
    **dict.fromkeys(("copy", "put", "get"), "cp"),
    "version": "--version",
}


def hint(word: str, commands: list[str]) -> str:
    """Return what to type instead of WORD."""
    begin_so = [command for command in commands if word and command.startswith(word)]
    near = OTHERS_WORDS.get(word, next(iter(begin_so or difflib.get_close_matches(word, commands, 1)), ""))
    if near:
        meant = f"did you mean `cntr {near}`?"
    elif word.startswith("-"):
        meant = "options come behind the command;"
    else:
        meant = f"`cntr attach NAME` attaches to a container{' called ' + printable(word) if word else ''};"
    return f"{meant} `cntr --help` lists all commands"
