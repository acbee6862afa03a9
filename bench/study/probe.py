"""``python -m bench.study.probe NAME probe|held``: runs the steps of a recipe on a container, from its network
namespace.

$CNTR_SLIM_PID is the container's first process, as set by ``cntr slim`` for an exercise. Prints failures; their number
is the exit status.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Callable

from bench.study.recipe import Step
from bench.study.recipes import BY_NAME

SECONDS = 30


def http_step(port: int, path: str, text: str) -> str:
    """A GET; why it failed, "" if it did not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    finally:
        connection.close()
    if answer.status >= 400:
        return f"status {answer.status}"
    return "" if text in body else f"{text!r} is not in the answer"


def say_step(port: int, sent: str, wanted: str) -> str:
    """A few bytes in each direction."""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as stream:
        stream.sendall(sent.encode())
        heard = b""
        while wanted.encode() not in heard:
            part = stream.recv(4096)
            if not part:
                return f"heard {heard[:80]!r}"
            heard += part
    return ""


def exec_step(words: list[str], wanted: str) -> str:
    """A program of the container's own."""
    command = [sys.executable, "-m", "cntr", "exec", f"pid:{os.environ['CNTR_SLIM_PID']}", "--", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    said = done.stdout + done.stderr
    if done.returncode:
        return f"status {done.returncode}: {said.strip()[-200:]}"
    return "" if wanted in said else f"{wanted!r} is not in {said[:80]!r}"


KINDS: dict[str, Callable[..., str]] = {"http": http_step, "say": say_step, "exec": exec_step}


def failures(steps: tuple[Step, ...]) -> list[str]:
    """One line for each failed step."""
    found = []
    for kind, *arguments in steps:
        try:
            why = KINDS[kind](*arguments)
        except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
            why = str(error) or type(error).__name__
        if why:
            found.append(f"{kind} {' '.join(map(str, arguments[:2]))}: {why}")
    return found


def main() -> int:
    """The number of failed steps."""
    recipe = BY_NAME[sys.argv[1]]
    found = failures(recipe.held_back if sys.argv[2] == "held" else recipe.probe)
    print("\n".join(found))
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
