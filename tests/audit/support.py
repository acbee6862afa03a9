"""An /etc/cntr.conf and a journal for one test, in a mount namespace that ends with the test."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import pathlib
import shlex
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cntr.audit import other_sinks
from tests.nest import busybox

HERE = pathlib.Path(__file__).parent


class Journal:
    """Listens on journald's socket and parses its wire format. entries: [{field: [values]}]."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.entries: list[dict[str, list[str]]] = []
        self.large = 0  # number of entries that came in a memfd
        self.thread = threading.Thread(target=self._take)
        self.thread.start()

    def _take(self) -> None:
        while True:
            data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
            for _, _, content in ancillary:
                (fd,) = array.array("i", content)
                with open(fd, "rb") as stream:
                    stream.seek(0)
                    data = stream.read()
                self.large += 1
            if data == b"end":
                return
            entry: dict[str, list[str]] = {}
            for line in data.decode().split("\n")[:-1]:
                name, equals, value = line.partition("=")
                assert equals, line  # the format for values with newlines is not needed
                assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"), name
                assert not name.startswith("_"), name
                assert len(name) <= 64, name
                entry.setdefault(name, []).append(value)
            self.entries.append(entry)

    def close(self) -> None:
        """Read what has arrived, then close."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", self.socket.getsockname())
        self.thread.join()
        self.socket.close()


class AuditedHost:
    """run: the directory used as /run; policy: the text of /etc/cntr.conf, or None; setup: additional lines of shell."""

    def __init__(self, run: pathlib.Path) -> None:
        self.run, self.policy, self.setup = run, None, ""
        self.policy: str | None
        run.mkdir(parents=True, exist_ok=True)

    def prefix(self) -> list[str]:
        """The words to put before a command."""
        setup = "" if self.policy is None else f"printf %s {shlex.quote(self.policy)} > /etc/cntr.conf\n"
        return [
            "unshare",
            "-m",
            sys.executable,
            str(HERE / "place.py"),
            str(self.run),
            f"umask 022\n{setup}{self.setup}",
            "--",
        ]

    def cntr(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return busybox.run(*arguments, prefix=self.prefix(), **options)  # type: ignore[arg-type]

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        journal = Journal(self.run / "systemd/journal/socket")
        try:
            yield journal
        finally:
            journal.close()
            os.unlink(self.run / "systemd/journal/socket")


@contextmanager
def audit_lock() -> Iterator[None]:
    """There is one audit system in the kernel, so only one test at a time uses it."""
    fd = os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class AuditDaemon:
    """Takes auditd's place: the kernel's audit system is switched on and sends its records here. A scope. Raises OSError
    if that is impossible; EBUSY: the machine has a daemon of its own, which is left alone.
    """

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, other_sinks.NETLINK_AUDIT)
        self.socket.bind((0, 0))
        self.socket.settimeout(20)

    def _set(self, enabled: int, pid: int) -> None:
        """Send AUDIT_SET with struct audit_status (linux/audit.h): mask, enabled, failure, pid, …"""
        body = struct.pack("=10I", 1 | 4, enabled, 0, pid, 0, 0, 0, 0, 0, 0)
        self.socket.send(struct.pack("=IHHII", 16 + len(body), 1001, 1 | 4, 1, 0) + body)
        while True:
            data = self.socket.recv(1 << 14)
            if int.from_bytes(data[4:6], sys.byteorder) == other_sinks.NLMSG_ERROR:
                number = -int.from_bytes(data[16:20], sys.byteorder, signed=True)
                if number:
                    raise OSError(number, os.strerror(number))
                return

    def __enter__(self) -> AuditDaemon:
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, other_sinks.NETLINK_AUDIT) as asking:
                status = other_sinks._ask_kernel(asking, other_sinks.AUDIT_GET, b"")
            if any(status[4:8]) or any(status[12:16]):
                raise OSError(errno.EBUSY, "auditing is switched on")
            self._set(1, os.getpid())
        except BaseException:
            self.socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._set(0, 0)
        finally:
            self.socket.close()

    def user_commands(self, word: str) -> Iterator[str]:
        """Each USER_CMD record whose command contains WORD, as it arrives."""
        while True:
            data = self.socket.recv(1 << 14)
            text = data[16:].rstrip(b"\0").decode()
            if (
                int.from_bytes(data[4:6], sys.byteorder) == other_sinks.AUDIT_USER_CMD
                and word.encode().hex().upper() in text
            ):
                yield text


def only(entry: dict[str, list[str]], field: str) -> str:
    """The value of a field that occurs once; "" if it does not occur."""
    values = entry.get(field, [])
    assert len(values) < 2, (field, values)
    return values[0] if values else ""
