"""A container with a server, and a running ``cntr forward``."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from testkit.container import SlimContainer
from tests.nest.busybox import CNTR, REPOSITORY

SERVER = str(pathlib.Path(__file__).with_name("server.py"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": REPOSITORY}


class Web:
    """A container that runs server.py. Its target is a word of its command line, so a restarted one is found again."""

    def __init__(self) -> None:
        self.mark = f"web-{secrets.token_hex(6)}"
        self.target = f"command:{self.mark}"
        self.container: SlimContainer | None = None
        self.server: subprocess.Popen[str] | None = None

    def start(self, *, serve: bool = True) -> None:
        """serve: whether its server is started, too."""
        self.container = SlimContainer("web", argv=["/app", self.mark])
        self.container.__enter__()
        (self.container.root / "run").mkdir()
        if serve:
            self.serve()

    def serve(self) -> None:
        self.server = self.run_in_network(SERVER, f"{self.container.root}/run")
        assert self.server.stdout.readline() == "up\n"

    def run_in_network(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python program in its network namespace."""
        words = ["nsenter", "-t", str(self.container.pid), "-n", sys.executable, *arguments]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def ask(self, code: str) -> str:
        """The output of a short program in its network namespace."""
        with self.run_in_network("-c", code) as process:
            return process.communicate(timeout=20)[0].strip()

    def stop(self) -> None:
        """Stop the server first: all processes of a container end."""
        if self.server:
            self.server.kill()
            self.server.communicate()
            self.server = None
        if self.container:
            self.container.stop()
            self.container = None


@contextmanager
def web() -> Iterator[Web]:
    """A running Web."""
    made = Web()
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Running:
    """A running ``cntr forward --json`` without a command; its ports in the order of the command line."""

    def __init__(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait until all ports are open."""
        self.process = process
        self.events: list[dict[str, object]] = []
        self.ports = [int(str(self.wait_for("listening")["port"])) for _ in range(count)]

    def wait_for(self, kind: str) -> dict[str, object]:
        """The next event of KIND."""
        while line := self.process.stdout.readline():
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == kind:
                return self.events[-1]
        raise AssertionError(f"no {kind}: {self.events} {self.process.stderr.read()}")

    def connect(self, number: int = 0, timeout: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[number]), timeout)


@contextmanager
def forward(
    target: str, *words: str, prefix: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> Iterator[Running]:
    """A Running that must end with SIGTERM's status when it gets one. prefix: a command to run it under."""
    process = subprocess.Popen(
        [*prefix, *CNTR, "forward", target, "--json", *words],
        env={**environment, "PYTHONPATH": REPOSITORY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process, sum(not word.startswith("-") for word in words))
        process.terminate()
        assert process.wait(10) == 128 + 15
        assert process.stderr.read() == ""
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def say(connection: socket.socket, text: bytes = b"hello") -> bytes:
    """Send TEXT and close the writing side; return everything received until the end."""
    with connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """Everything received until the end."""
    chunks = []
    while data := connection.recv(1 << 18):
        chunks.append(data)
    return b"".join(chunks)
