"""Writes records to journald's own socket; the other sinks that a policy can name are in ``other_sinks``, imported on
demand.

No sink blocks longer than PATIENCE_SECONDS. Sockets are opened for each record, as journald may have been restarted.
"""

from __future__ import annotations

import _socket  # the module behind socket, without its import of enum (5 ms)
import errno
import os

from cntr.audit import FACILITY, PATIENCE_SECONDS, PRIORITY, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit import Fields

JOURNAL, SYSLOG = "/run/systemd/journal/socket", "/dev/log"
# sd-id128(3), one for each kind of record: `journalctl MESSAGE_ID=…`
MESSAGE_IDS = {
    "start": "b0c0c3f1b94b4b9a9b1f5a7d0a6e2c11",
    "end": "b0c0c3f1b94b4b9a9b1f5a7d0a6e2c12",
    "denied": "b0c0c3f1b94b4b9a9b1f5a7d0a6e2c13",
}
MFD_CLOEXEC, MFD_ALLOW_SEALING = 0x1, 0x2
F_ADD_SEALS, SEALS = 1033, 0xF  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE (fcntl(2))


class Settings:
    """The policy's settings for records.

    journal: to journald, else syslog; audit: to the kernel's audit system; file: path of JSON lines, "" for none;
    require: refuse a session that cannot be recorded in all of them.
    """

    __slots__ = ("audit", "file", "journal", "require")

    def __init__(self) -> None:
        """The settings without a policy."""
        self.journal, self.audit, self.require, self.file = True, False, False, ""


def write(kind: str, fields: Fields, settings: Settings) -> list[tuple[str, OSError]]:
    """Write one record to every sink; return the errors by sink. Without a policy, it is no error if no sink exists."""
    failed: list[tuple[str, OSError]] = []
    if settings.journal:
        try:
            _journal_or_syslog(kind, fields)
        except OSError as error:
            if settings.require or error.errno != errno.ENOENT:
                failed.append(("the system's journal", error))
    if settings.audit or settings.file:
        from cntr.audit import other_sinks

        failed += other_sinks.write(kind, fields, audit=settings.audit, path=settings.file, durable=settings.require)
    return failed


def _journal_or_syslog(kind: str, fields: Fields) -> None:
    try:
        to_journal(kind, fields)
    except OSError:
        if not os.path.exists(SYSLOG):
            raise
        from cntr.audit import other_sinks

        other_sinks.to_syslog(SYSLOG, fields)


def journal_name(key: str) -> str:
    """The journal's name of a field: CNTR_CONTAINER_NAME for ``container.name``."""
    return ("" if key.startswith("cntr.") else "CNTR_") + key.replace(".", "_").upper()


def to_journal(kind: str, fields: Fields) -> None:
    """systemd's native protocol: a datagram of FIELD=value lines; values contain no newlines. Raises OSError."""
    lines = [
        f"MESSAGE={fields['message']}",
        f"MESSAGE_ID={MESSAGE_IDS[kind]}",
        f"PRIORITY={PRIORITY}",
        f"SYSLOG_FACILITY={FACILITY}",
        "SYSLOG_IDENTIFIER=cntr",
    ]
    if "cntr.target_pid" in fields:
        lines.append(f"OBJECT_PID={fields['cntr.target_pid']}")  # journald adds what it knows about that process
    for key, value in fields.items():
        if key not in ("@timestamp", "message"):
            lines += [f"{journal_name(key)}={one}" for one in (value if isinstance(value, list) else [value])]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.sendto(data, JOURNAL)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            connection.connect(JOURNAL)
            _send_sealed(connection, data)
    finally:
        connection.close()


def _send_sealed(connection: _socket.socket, data: bytes) -> None:
    """Send a record too large for a datagram: an empty one with a sealed memfd (sd_journal_sendv(3))."""
    from fcntl import fcntl

    from cntr.audit.other_sinks import RaisedLimits
    from cntr.linux import sockets

    fd = os.memfd_create("cntr-record", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    try:
        with RaisedLimits():
            write_all(fd, data)
        fcntl(fd, F_ADD_SEALS, SEALS)
        sockets.send(connection, b"", [fd])
    finally:
        os.close(fd)
