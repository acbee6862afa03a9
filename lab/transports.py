"""How commands reach a machine: SSH through fabric, or namespaces of this host."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from .drivers.base import Endpoint
from .errors import CommandFailed

OPEN_SECONDS = 180
"""A login starts a user manager in the machine: half a minute on an emulated machine of a busy host."""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>]")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command did. Undecodable bytes of its output are replaced; scenarios about bytes compare checksums."""

    returncode: int
    stdout: str
    stderr: str


class Background(Protocol):
    """A command under way."""

    def wait(self, timeout: float) -> int:
        """Its exit status; TimeoutError when it still runs."""

    def output(self) -> str:
        """What it wrote so far."""

    def close(self) -> None:
        """End it: its standard input closes, its terminal hangs up."""


class Carrier(Protocol):
    """Raises TimeoutError when a command takes too long, ConnectionError when the machine is out of reach."""

    def run(self, command: str, user: str, timeout: float, stdin: bytes) -> Result:
        """Run to the end."""

    def start(self, command: str, user: str) -> Background:
        """Run beside."""

    def terminal(self, command: str, user: str, columns: int, rows: int, slowness: float) -> Terminal:
        """Run on a pseudo-terminal."""

    def put(self, source: Path, target: str) -> None:
        """Copy."""

    def testinfra(self) -> Any:
        """A testinfra host."""

    def close(self) -> None:
        """Drop connections; the next command opens new ones."""


class Terminal:
    """The screen end of a pseudo-terminal: type, wait for text, resize.

    Args:
        read: returns bytes that came, b"" at the end, raises TimeoutError within a second of silence.
    """

    def __init__(self, read: Any, write: Any, resize: Any, close: Any, status: Any, slowness: float) -> None:
        self._read, self._write, self.resize, self._close, self._status = read, write, resize, close, status
        self._slowness = slowness
        self.seen = ""
        self._mark = 0

    def type(self, text: str) -> None:
        """Send keys; `\\x03` is Ctrl-C, `\\r` is Enter."""
        self._write(text.encode())

    def expect(self, pattern: str, timeout: float = 20) -> str:
        """Wait until the regular expression shows up in what came since the last `expect`; the matched text.

        Raises:
            CommandFailed: it did not, in `timeout` seconds of natural speed.
        """
        deadline = time.monotonic() + timeout * self._slowness
        while True:
            found = re.search(pattern, self.seen[self._mark :])
            if found:
                self._mark += found.end()
                return found.group()
            if time.monotonic() > deadline or not self._pump():
                tail = self.seen[self._mark :].strip()[-300:]
                raise CommandFailed(f"expected: /{pattern}/ on the terminal\nseen:     {tail or '(nothing)'}")

    def wait_closed(self, timeout: float = 20) -> int:
        """Wait for the command's end; its exit status."""
        deadline = time.monotonic() + timeout * self._slowness
        while self._pump():
            if time.monotonic() > deadline:
                raise CommandFailed(f"expected: the session ends\nseen:     it goes on; last: {self.seen[-200:]!r}")
        status: int = self._status()
        return status

    def _pump(self) -> bool:
        try:
            data = self._read()
        except TimeoutError:
            return True
        self.seen += ESCAPES.sub("", data.decode(errors="replace"))
        return bool(data)

    def close(self) -> None:
        """Hang up."""
        self._close()


class SshCarrier:
    """SSH by fabric, one connection per user, kept open."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connections: dict[str, Any] = {}
        self._testinfra: Any = None

    def _connection(self, user: str) -> Any:
        import logging

        from fabric import Config, Connection

        # A machine that boots resets connections; paramiko logs a traceback for each, beside the exception it raises.
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        known = self._connections.get(user)
        if known is not None and known.is_connected:
            return known
        connection = Connection(
            self._endpoint.host,
            user=user,
            port=self._endpoint.port,
            connect_timeout=60,
            config=Config(overrides={"load_ssh_configs": False}, lazy=True),
            connect_kwargs={
                "key_filename": str(self._endpoint.key),
                "look_for_keys": False,
                "allow_agent": False,
                "banner_timeout": OPEN_SECONDS,
                "auth_timeout": OPEN_SECONDS,
            },
        )
        with _as_connection_error():
            connection.open()
            connection.transport.set_keepalive(15)
        self._connections[user] = connection
        return connection

    def run(self, command: str, user: str, timeout: float, stdin: bytes) -> Result:
        """See Carrier. fabric's own `run` starts three threads a command; its connection's channel is enough here."""
        connection = self._connection(user)
        with _as_connection_error():
            channel = connection.transport.open_session(timeout=OPEN_SECONDS)
            try:
                channel.exec_command(command)
                if stdin:
                    channel.sendall(stdin)
                channel.shutdown_write()
                out, err = _drain(channel, time.monotonic() + timeout)
                status = channel.recv_exit_status() if channel.exit_status_ready() else -1
            finally:
                channel.close()
        if status == -1 and not connection.is_connected:
            raise ConnectionError("the connection was closed")
        return Result(status, out.decode(errors="replace"), err.decode(errors="replace"))

    def start(self, command: str, user: str) -> Background:
        """See Carrier."""
        connection = self._connection(user)
        with _as_connection_error():
            channel = connection.transport.open_session(timeout=OPEN_SECONDS)
            channel.exec_command(command)
        return _SshBackground(channel)

    def terminal(self, command: str, user: str, columns: int, rows: int, slowness: float) -> Terminal:
        """See Carrier."""
        connection = self._connection(user)
        with _as_connection_error():
            channel = connection.transport.open_session(timeout=OPEN_SECONDS)
            channel.get_pty("xterm", columns, rows)
            channel.exec_command(command)
        channel.settimeout(1.0)
        return Terminal(
            lambda: channel.recv(65536),
            channel.sendall,
            lambda wide, high: channel.resize_pty(wide, high),
            channel.close,
            channel.recv_exit_status,
            slowness,
        )

    def put(self, source: Path, target: str) -> None:
        """A tar stream into `tar x`: one command, however many files."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, "." if source.is_dir() else Path(target).name, filter=_owned_by_root)
        place = target if source.is_dir() else str(Path(target).parent)
        command = f"mkdir -p {shlex.quote(place)} && tar xf - -C {shlex.quote(place)}"
        result = self.run(command, "root", 300, packed.getvalue())
        if result.returncode != 0:
            raise CommandFailed(f"expected: {source} copied to {target}\nseen:     {result.stderr.strip()}")

    def testinfra(self) -> Any:
        """A paramiko host: 0.14 s a question, where `ssh://` takes 1.4 s."""
        import testinfra

        if self._testinfra is None:
            place = f"paramiko://root@{self._endpoint.host}:{self._endpoint.port}"
            self._testinfra = testinfra.get_host(place, ssh_identity_file=str(self._endpoint.key), timeout=60)
        return self._testinfra

    def close(self) -> None:
        """See Carrier."""
        for connection in self._connections.values():
            with contextlib.suppress(Exception):
                connection.close()
        self._connections.clear()
        if self._testinfra is not None:
            with contextlib.suppress(Exception):
                self._testinfra.backend.client.close()
            self._testinfra = None


class _SshBackground:
    """See Background."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._text = b""

    def _collect(self) -> None:
        while self._channel.recv_ready():
            self._text += self._channel.recv(65536)
        while self._channel.recv_stderr_ready():
            self._text += self._channel.recv_stderr(65536)

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while not self._channel.exit_status_ready():
            self._collect()
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.05)
        self._collect()
        status: int = self._channel.recv_exit_status()
        return status

    def output(self) -> str:
        self._collect()
        return self._text.decode(errors="replace")

    def close(self) -> None:
        self._channel.close()


class LocalCarrier:
    """This host, through a command prefix that enters the lab's own namespaces (see drivers/here.py)."""

    def __init__(self, prefixes: dict[str, list[str]]) -> None:
        self._prefixes = prefixes

    def _argv(self, command: str, user: str) -> list[str]:
        return [*self._prefixes[user], "sh", "-c", command]

    def run(self, command: str, user: str, timeout: float, stdin: bytes) -> Result:
        """See Carrier."""
        try:
            done = subprocess.run(
                self._argv(command, user), input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        return Result(
            _shell_status(done.returncode), done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def start(self, command: str, user: str) -> Background:
        """See Carrier."""
        process = subprocess.Popen(
            self._argv(command, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return _LocalBackground(process)

    def terminal(self, command: str, user: str, columns: int, rows: int, slowness: float) -> Terminal:
        """See Carrier."""
        from .localpty import open_terminal

        return open_terminal(self._argv(command, user), columns, rows, slowness)

    def put(self, source: Path, target: str) -> None:
        """See Carrier."""
        place = target if source.is_dir() else str(Path(target).parent)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, "." if source.is_dir() else Path(target).name, filter=_owned_by_root)
        self.run(f"mkdir -p {shlex.quote(place)} && tar xf - -C {shlex.quote(place)}", "root", 120, packed.getvalue())

    def testinfra(self) -> Any:
        """A local host whose every command enters the namespaces."""
        import testinfra.backend.local
        import testinfra.host

        prefix = shlex.join(self._prefixes["root"])

        class Inside(testinfra.backend.local.LocalBackend):  # type: ignore[misc]
            def run(self, command: str, *args: str, **options: Any) -> Any:
                line = self.get_command(command, *args)
                return self.run_local(f"{prefix} sh -c {shlex.quote(line)}")

        return testinfra.host.Host(Inside())

    def close(self) -> None:
        """Nothing is kept open."""


class _LocalBackground:
    """See Background."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._text = b""

    def wait(self, timeout: float) -> int:
        try:
            out, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        self._text += out or b""
        return _shell_status(self._process.returncode)

    def output(self) -> str:
        return self._text.decode(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            # nsenter's child is in another pid namespace and may hold the pipes: never wait for their end.
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _shell_status(returncode: int) -> int:
    """A shell's view of a status: 128 + signal where the process was killed."""
    return returncode if returncode >= 0 else 128 - returncode


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return None if "__pycache__" in entry.name else entry


def _drain(channel: Any, deadline: float) -> tuple[bytes, bytes]:
    """Both outputs of a channel until it ends, without letting either fill up. TimeoutError after the deadline."""
    out, err = bytearray(), bytearray()
    channel.settimeout(0.0)
    pause = 0.002
    while True:
        idle = True
        if channel.recv_ready():
            out += channel.recv(1 << 20)
            idle = False
        if channel.recv_stderr_ready():
            err += channel.recv_stderr(1 << 20)
            idle = False
        if idle and (channel.exit_status_ready() or channel.closed) and (channel.eof_received or channel.closed):
            return bytes(out), bytes(err)
        if time.monotonic() > deadline:
            raise TimeoutError
        if idle:
            time.sleep(pause)
            pause = min(pause * 1.3, 0.05)
        else:
            pause = 0.002


@contextlib.contextmanager
def _as_connection_error() -> Iterator[None]:
    """What paramiko raises when a machine is out of reach, as the one kind that says so."""
    import paramiko

    try:
        yield
    except (TimeoutError, ConnectionError):
        raise
    except (OSError, paramiko.SSHException, EOFError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
