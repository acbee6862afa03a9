"""The sinks that a policy can name: the kernel's audit system and a file of JSON lines; and syslog, for machines
without journald.
"""

from __future__ import annotations

import _socket  # the module behind socket, without its import of enum (5 ms)
import errno
import fcntl
import os
import stat
import sys
import time

from cntr.audit import FACILITY, LIST_LIMIT, PATIENCE_SECONDS, PRIORITY, STRING_LIMIT, to_json, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit import Fields, Value

SYSLOG_LIMIT = 8192  # bytes of a line, the limit of rsyslog
# linux/netlink.h, linux/audit.h
NETLINK_AUDIT, NLMSG_ERROR, NLM_F_REQUEST, NLM_F_ACK = 9, 2, 0x1, 0x4
AUDIT_GET, AUDIT_USER_CMD = 1000, 1123


def write(kind: str, fields: Fields, *, audit: bool, path: str, durable: bool) -> list[tuple[str, OSError]]:
    """Write one record to the audit system, and to the file PATH unless that is ""; return the errors by sink."""
    failed: list[tuple[str, OSError]] = []
    if audit and kind != "end":  # USER_CMD is written at the beginning only, as by sudo
        try:
            to_audit(fields, succeeded=kind != "denied")
        except OSError as error:
            failed.append(("the audit system", error))
    if path:
        try:
            to_file(path, fields, durable=durable)
        except OSError as error:
            failed.append((path, error))
    return failed


def to_syslog(path: str, fields: Fields) -> None:
    """One line of RFC 3164 at PATH, /dev/log: all fields as JSON behind @cee:, which rsyslog's mmjsonparse reads. Raises OSError."""
    line, most, longest = to_json(fields), LIST_LIMIT, STRING_LIMIT
    while len(line.encode()) > SYSLOG_LIMIT - 256:  # every field is kept, and the longest are cut most
        most, longest = max(2, most // 2), longest // 2
        line = to_json({key: _shorter(value, most, longest) for key, value in fields.items()})
    when = time.localtime()
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[when.tm_mon - 1]
    head = f"<{FACILITY * 8 + PRIORITY}>{month} {when.tm_mday:2d} {time.strftime('%H:%M:%S', when)} cntr[{os.getpid()}]"
    data = f"{head}: @cee: {line}".encode()[:SYSLOG_LIMIT]
    for kind, end in ((_socket.SOCK_DGRAM, b""), (_socket.SOCK_STREAM, b"\0")):
        connection = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(path)
            connection.sendall(data + end)
            return
        except OSError as error:
            if error.errno != errno.EPROTOTYPE or kind == _socket.SOCK_STREAM:
                raise
        finally:
            connection.close()


def _shorter(value: Value, most: int, longest: int) -> Value:
    if isinstance(value, list):
        return [one[:longest] for one in value[:most]]
    return value[:longest] if isinstance(value, str) else value


# --- audit ---------------------------------------------------------------------------------------------------------------


def to_audit(fields: Fields, *, succeeded: bool) -> None:
    """Write AUDIT_USER_CMD, the record that sudo writes; needs CAP_AUDIT_WRITE (audit_log_user_command(3)).

    Raises OSError: ENOTCONN if the audit system is off or has no daemon, as far as the caller may ask.
    """
    connection = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_AUDIT)
    try:
        connection.settimeout(PATIENCE_SECONDS)
        status = _ask_kernel(connection, AUDIT_GET, b"")  # struct audit_status: mask, enabled, failure, pid
        enabled, daemon = (int.from_bytes(status[at : at + 4], sys.byteorder) for at in (4, 12))
        if not enabled or not daemon:
            raise OSError(errno.ENOTCONN, "auditing is switched off, or auditd does not run")
        _ask_kernel(connection, AUDIT_USER_CMD, audit_text(fields, succeeded=succeeded))
    finally:
        connection.close()


def audit_text(fields: Fields, *, succeeded: bool) -> bytes:
    """The record's own part; the kernel prepends pid, uid, auid, ses and the security label, and
    overwrites the last byte with NUL.

    The kernel cuts at 8560 bytes (AUDIT_MESSAGE_TEXT_MAX). Without limits that could remove the
    outcome, or after a long directory everything. So each value has a limit; in hexadecimal it
    takes twice that.
    """
    words = fields["process.args"]
    assert isinstance(words, list)
    plain = (
        ("op", f"cntr-{fields['event.action']}"),
        ("cntr_id", fields["event.id"]),  # ausearch(8) takes `id` for a uid
        ("addr", fields.get("source.ip", "?")),
    )
    text = [f"{name}={_plain(str(value))}" for name, value in (*plain, ("terminal", fields.get("cntr.tty", "?")))]
    rows = (("cwd", _where(), 1000), ("cmd", " ".join(words), 2500), ("exe", _program(), 500))
    text += [f"{name}={audit_value(value, most)}" for name, value, most in rows]
    return f"{' '.join(text)} res={'success' if succeeded else 'failed'}\0".encode()


def _where() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "?"


def _program() -> str:
    """The interpreter's path; for a copy that is not mounted anywhere (``readonly_interpreter``) the kernel shows "/"."""
    found = os.readlink("/proc/self/exe")
    return found if found.startswith("/") and found != "/" and not found.endswith(" (deleted)") else sys.executable


def _plain(text: str) -> str:
    """TEXT for a field that is not encoded."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.:/?") else "_" for letter in text)


def audit_value(text: str, most: int) -> str:
    """TEXT, at most MOST bytes of it, as libaudit encodes it: quoted, or in hexadecimal if quotes
    would be ambiguous (audit_encode_nv_string(3)).
    """
    data = os.fsencode(text)[:most]
    unsafe = any(byte in b"\"'" or not 0x21 <= byte < 0x7F for byte in data)
    return data.hex().upper() if unsafe else f'"{data.decode()}"'


def _ask_kernel(connection: _socket.socket, kind: int, text: bytes) -> bytes:
    """Make one netlink(7) request; return the body of the answer. Raises OSError."""
    body = text + b"\0" * (-len(text) % 4)
    head = b"".join(
        number.to_bytes(size, sys.byteorder)
        for number, size in ((16 + len(text), 4), (kind, 2), (NLM_F_REQUEST | NLM_F_ACK, 2), (1, 4), (0, 4))
    )
    connection.sendto(head + body, (0, 0))
    while True:
        answer = connection.recv(8192)
        answered, code = int.from_bytes(answer[4:6], sys.byteorder), answer[16:20]
        if answered != NLMSG_ERROR:
            return answer[16:]
        number = -int.from_bytes(code, sys.byteorder, signed=True)
        if number:
            raise OSError(number, os.strerror(number))
        if kind != AUDIT_GET:
            return b""


class RaisedLimits:
    """A scope with the file size limit raised as far as possible: with `ulimit -f` a caller could
    suppress the record.
    """

    def __enter__(self) -> None:
        import resource

        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for most in (resource.RLIM_INFINITY, self.before[1]):
            try:
                return resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            except (OSError, ValueError):  # without CAP_SYS_RESOURCE
                continue

    def __exit__(self, *_: object) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


# --- a file --------------------------------------------------------------------------------------------------------------


def to_file(path: str, fields: Fields, *, durable: bool) -> None:
    """Append one line of JSON to root's file, created with mode 0600; durable: call fsync(2). Raises OSError.

    A line is written whole or not at all: if the disk is full, the partial line is truncated, under the file's lock.
    """
    directory, _, name = path.rpartition("/")
    parent = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _only_roots(os.fstat(parent))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(name, flags, 0o600, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        status = os.fstat(fd)
        _only_roots(status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = os.fstat(fd).st_size
        try:
            with RaisedLimits():
                write_all(fd, f"{to_json(fields)}\n".encode())
        except OSError:
            os.ftruncate(fd, before)
            raise
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _lock(fd: int, operation: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(fd, operation)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _only_roots(status: os.stat_result) -> None:
    """Raise OSError if others can write to the file or remove it."""
    if status.st_uid or status.st_mode & 0o022:
        raise OSError(errno.EPERM, "it, or its directory, is not root's alone to write to")
