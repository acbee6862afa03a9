"""The recipes of docs/howto.md, unchanged, as shell scripts that print what they must show."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

HOWTO = Path(__file__).parents[1] / "docs" / "howto.md"
#: Time limit of a whole recipe; a recipe without an end is ended when its output's reader ends.
SECONDS = 60


def line(beginning: str, target: str) -> str:
    """The one command line of the howto that starts with BEGINNING, with TARGET for ``web``. Raises ValueError if there
    is not exactly one.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    commands = [command for block in blocks for command in re.split(r"\n(?=\S)", block.rstrip())]
    found = [command for command in commands if command.startswith(beginning)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} commands of {HOWTO.name} begin with {beginning!r}")
    without_comment = re.sub(r"\s{2,}# .*$", "", found[0])
    return re.sub(r"\bweb\b", target, without_comment)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """tool: the program it needs; shows: a basic regular expression for grep(1); typed: its standard input."""

    tool: str
    beginning: str
    shows: str
    typed: str = ""
    meanwhile: str = ""
    """A command with ``web`` in it, repeated until the expected output has been shown."""
    shorter: tuple[str, str] = ("", "")
    """A word of the recipe, and its replacement here."""

    def script(self, target: str, options: str = "") -> str:
        """A shell script that prints the first line of the expected output, with status 0 if there is one. options: of
        ``cntr attach``.
        """

        def command(words: str) -> str:
            return words.replace("cntr attach", f"cntr attach {options}".rstrip(), 1)

        recipe = command(line(self.beginning, target)).replace(*self.shorter)
        script = f"printf {shlex.quote(self.typed)} | timeout {SECONDS} {recipe} 2>&1 | grep -a -m 1 -- {shlex.quote(self.shows)}"
        if self.meanwhile:
            again = command(self.meanwhile.replace(" web ", f" {target} ", 1))
            busy = f"while sleep 0.2; do {again}; done >/dev/null 2>&1 & busy=$!"
            script = (
                f"{busy}\nfor attempt in 1 2 3 4 5; do {script} && break; done; status=$?; kill $busy; exit $status"
            )
        return script


CURL = "cntr attach web -- curl -s http:"
ASK = 's.create_connection(("127.0.0.1", 8080)).recv(99)'
ASK_MUCH = f"cntr attach web -- python3 -c 'import socket as s; [{ASK} for _ in range(3000)]'"
#: With the lab's slim-app as the first process of a container that has an /etc/passwd.
RECIPES = (
    Recipe("gdb", "cntr attach web -- gdb", "serve_forever", typed="bt\\n"),
    Recipe("gdb", "cntr attach web -- gdb", "hello from the slim container", typed="print lab_greeting\\n"),
    Recipe("strace", "cntr attach web -- strace -f -p 1", "poll("),
    Recipe(
        "perf",
        "cntr attach web -- sh -c 'perf record",
        "slim-app.* \\(answer_request\\|serve_forever\\|accept\\|poll\\|close\\|write\\)",
        shorter=("sleep 10", "sleep 2"),
        meanwhile=ASK_MUCH,
    ),
    Recipe("ss", "cntr attach web -- ss", "127.0.0.1:8080.*slim-app"),
    Recipe("tcpdump", "cntr attach web -- tcpdump", "127.0.0.1.8080", meanwhile=line(CURL, "web")),
    Recipe(
        "curl", CURL, "Received HTTP/0.9\\|hello from the slim container", shorter=("curl -s", "curl -sS --http0.9")
    ),
)
