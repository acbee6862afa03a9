"""Runs other programs: with a time limit, in a session of their own so that Ctrl-C reaches cntr only, errors in one
line.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time

from cntr.errors import CntrError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO, Any

SECONDS = 120.0  # time limit for one request to an engine
KEPT = 1 << 20  # bytes of what a container's own program prints


class Failed(CntrError):
    """A program ended with a status other than 0; status: -1 if it could not be run, or ran out of time."""

    def __init__(self, message: str, hint: str = "", status: int = -1, said: str = "") -> None:
        """said: its stderr."""
        super().__init__(message, hint)
        self.status, self.said = status, said


def run(
    argv: Sequence[str], *, seconds: float = SECONDS, stdin: IO[bytes] | int | None = None, both: bool = False
) -> str:
    """The output of ARGV, undecodable bytes as surrogates; both: including its stderr, and only the last KEPT bytes.
    Raises Failed.
    """
    try:
        if both:
            done = end_of(argv, seconds)
        else:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                capture_output=True,
                timeout=seconds,
                check=False,
                start_new_session=True,
            )
    except FileNotFoundError:
        raise Failed(f"{argv[0]}: no such program", "install it, or name another engine") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{shown(argv)}: no end within {seconds:g} s", "a longer --timeout may help") from None
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}", "") from None
    if done.returncode:
        said = (done.stdout if both else done.stderr).decode("utf-8", "replace").strip()
        raise Failed(f"{shown(argv)}: {printable(reason(said, done.returncode)[:400])}", "", done.returncode, said)
    return done.stdout.decode("utf-8", "surrogateescape")


def end_of(
    argv: Sequence[str], seconds: float, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program that may print without end; keep the last KEPT bytes of both streams. before: called in the child.

    Raises OSError, subprocess.TimeoutExpired.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
            preexec_fn=before,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        kept, poll, deadline = bytearray(), select.poll(), time.monotonic() + seconds
        poll.register(reading, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            chunk = os.read(reading, KEPT) if poll.poll(left * 1000) else b""
            if not chunk:
                break
            kept += chunk
            del kept[:-KEPT]
        process.wait(max(0.0, deadline - time.monotonic()))
        return subprocess.CompletedProcess(process.args, process.returncode, bytes(kept))
    finally:
        os.close(reading)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def reason(said: str, status: int) -> str:
    """The line in SAID, a program's output, that tells why it failed: the daemon's message rather than its client's."""
    lines = [line for line in said.splitlines() if line.strip()]
    daemons = [line for line in lines if line.startswith("Error response from daemon: ")]
    return (daemons or lines or [f"exit status {status}"])[-1]


def load(argv: Sequence[str]) -> Any:
    """Parse the JSON that ARGV prints. Raises Failed."""
    text = run(argv)
    try:
        return json.loads(text)
    except ValueError:
        raise Failed(f"{shown(argv)}: the answer is not JSON", "") from None


def shown(argv: Sequence[str]) -> str:
    """The program and its verb, for errors."""
    words = [word for word in argv[1:] if not word.startswith("-") and "/" not in word]
    return " ".join([argv[0].rpartition("/")[2], *words[:2]])
