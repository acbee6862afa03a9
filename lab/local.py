"""Commands on this host, in namespaces of the lab's own (see drivers/here.py)."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import tarfile
import termios
from pathlib import Path
from typing import Any

from .transports import Background, Result, Terminal, owned_by_root, shell_status


class LocalCarrier:
    """Commands through a prefix that enters the namespaces."""

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
            shell_status(done.returncode), done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def start(self, command: str, user: str) -> Background:
        """See Carrier."""
        process = subprocess.Popen(
            self._argv(command, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return _LocalBackground(process)

    def terminal(self, command: str, user: str, columns: int, rows: int, slowness: float) -> Terminal:
        """See Carrier."""
        return open_terminal(self._argv(command, user), columns, rows, slowness)

    def put(self, source: Path, target: str) -> None:
        """See Carrier."""
        place = target if source.is_dir() else str(Path(target).parent)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, "." if source.is_dir() else Path(target).name, filter=owned_by_root)
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
        return shell_status(self._process.returncode)

    def output(self) -> str:
        return self._text.decode(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            # nsenter's child is in another pid namespace and may hold the pipes, so do not wait for their end.
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def open_terminal(argv: list[str], columns: int, rows: int, slowness: float) -> Terminal:
    """Run `argv` as the leader of a session on a new terminal of the given size."""
    master, slave = pty.openpty()

    def resize(wide: int, high: int) -> None:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", high, wide, 0, 0))

    resize(columns, rows)
    # setsid --ctty makes it the controlling terminal, so Ctrl-C and changes of size become signals.
    process = subprocess.Popen(["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)

    def read() -> bytes:
        if not select.select([master], [], [], 1.0)[0]:
            raise TimeoutError
        try:
            return os.read(master, 65536)
        except OSError:  # EIO: the last process on the terminal is gone
            return b""

    def status() -> int:
        return shell_status(process.wait(10))

    def close() -> None:
        with contextlib.suppress(OSError):
            os.close(master)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGHUP)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return Terminal(read, lambda data: os.write(master, data), resize, close, status, slowness)
