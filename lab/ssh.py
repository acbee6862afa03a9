"""Commands by SSH, through fabric."""

from __future__ import annotations

import contextlib
import io
import shlex
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .drivers.base import Endpoint
from .errors import CommandFailed
from .transports import Background, Result, Terminal, owned_by_root

OPEN_SECONDS = 180
"""A login starts a user manager in the machine: half a minute on an emulated machine on a busy host."""


class SshCarrier:
    """SSH by fabric, one connection per user, kept open."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connections: dict[str, Any] = {}
        self._testinfra: Any = None

    def _connection(self, user: str) -> Any:
        import logging

        from fabric import Config, Connection

        # A booting machine resets connections; paramiko logs a traceback for each, besides raising an exception.
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
        """See Carrier. fabric's own `run` starts three threads per command; a channel of its connection is enough here."""
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
        """Send a tar stream to `tar x`: one command for any number of files."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, "." if source.is_dir() else Path(target).name, filter=owned_by_root)
        place = target if source.is_dir() else str(Path(target).parent)
        command = f"mkdir -p {shlex.quote(place)} && tar xf - -C {shlex.quote(place)}"
        result = self.run(command, "root", 300, packed.getvalue())
        if result.returncode != 0:
            raise CommandFailed(f"expected: {source} copied to {target}\nseen:     {result.stderr.strip()}")

    def testinfra(self) -> Any:
        """A paramiko host: 0.14 s per question; `ssh://` takes 1.4 s."""
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


def _drain(channel: Any, deadline: float) -> tuple[bytes, bytes]:
    """Read both outputs of a channel until its end, without letting either fill up. Raises TimeoutError."""
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
    """Convert paramiko's errors for an unreachable machine to ConnectionError."""
    import paramiko

    try:
        yield
    except (TimeoutError, ConnectionError):
        raise
    except (OSError, paramiko.SSHException, EOFError) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
