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
    near = OTHERS_WORDS.get(word, next(iter(difflib.get_close_matches(word, commands, 1)), ""))
    meant = f"did you mean `cntr {near}`?" if near else f"`cntr attach {printable(word)}` attaches to a container;"
    return f"{meant} `cntr --help` lists them all"
