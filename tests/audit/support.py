"""A machine's /etc/cntr.conf and journal for one test, in a mount namespace that ends with it."""

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

from cntr.audit import elsewhere
from tests.nest import busybox

HERE = pathlib.Path(__file__).parent


class Journal:
    """Who listens at journald's socket: it takes the real wire format in. entries: [{field: [values]}]."""

    def __init__(self, path: pathlib.Path) -> None:
        """Listen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.entries: list[dict[str, list[str]]] = []
        self.large = 0  # of them came in a memfd
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
                assert equals, line  # the form for values with a newline is not used: there are none
                assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"), name
                assert not name.startswith("_"), name
                assert len(name) <= 64, name
                entry.setdefault(name, []).append(value)
            self.entries.append(entry)

    def close(self) -> None:
        """After what has come already."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", self.socket.getsockname())
        self.thread.join()
        self.socket.close()


class AuditedHost:
    """run: the directory that is /run; policy: the text of /etc/cntr.conf, None for none; setup: more of a shell script."""

    def __init__(self, run: pathlib.Path) -> None:
        """No journal, no policy."""
        self.run, self.policy, self.setup = run, None, ""
        self.policy: str | None
        run.mkdir(parents=True, exist_ok=True)

    def prefix(self) -> list[str]:
        """What a command is put behind."""
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
        """Run cntr in it."""
        return busybox.run(*arguments, prefix=self.prefix(), **options)  # type: ignore[arg-type]

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """With a journal."""
        journal = Journal(self.run / "systemd/journal/socket")
        try:
            yield journal
        finally:
            journal.close()
            os.unlink(self.run / "systemd/journal/socket")


@contextmanager
def audit_lock() -> Iterator[None]:
    """One test at a time has to do with the kernel's audit system, of which there is one."""
    fd = os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class AuditDaemon:
    """In auditd's place: the kernel's audit system is switched on, and sends its records here. OSError where that can't be had.

    A scope. The machine's own daemon is left alone: EBUSY.
    """

    def __init__(self) -> None:
        """Not yet."""
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, elsewhere.NETLINK_AUDIT)
        self.socket.bind((0, 0))
        self.socket.settimeout(20)

    def _set(self, enabled: int, pid: int) -> None:
        """AUDIT_SET of struct audit_status (linux/audit.h): mask, enabled, failure, pid, …"""
        body = struct.pack("=10I", 1 | 4, enabled, 0, pid, 0, 0, 0, 0, 0, 0)
        self.socket.send(struct.pack("=IHHII", 16 + len(body), 1001, 1 | 4, 1, 0) + body)
        while True:
            data = self.socket.recv(1 << 14)
            if int.from_bytes(data[4:6], sys.byteorder) == elsewhere.NLMSG_ERROR:
                number = -int.from_bytes(data[16:20], sys.byteorder, signed=True)
                if number:
                    raise OSError(number, os.strerror(number))
                return

    def __enter__(self) -> AuditDaemon:
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, elsewhere.NETLINK_AUDIT) as asking:
                status = elsewhere._ask_kernel(asking, elsewhere.AUDIT_GET, b"")
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
        """Each USER_CMD whose command has WORD in it, as it comes."""
        while True:
            data = self.socket.recv(1 << 14)
            text = data[16:].rstrip(b"\0").decode()
            if (
                int.from_bytes(data[4:6], sys.byteorder) == elsewhere.AUDIT_USER_CMD
                and word.encode().hex().upper() in text
            ):
                yield text


def only(entry: dict[str, list[str]], field: str) -> str:
    """The value of a field that is there once; "" for none."""
    values = entry.get(field, [])
    assert len(values) < 2, (field, values)
    return values[0] if values else ""
