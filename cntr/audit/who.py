"""Who runs cntr, and from where: what the kernel knows, and what sudo and sshd put in the environment."""

from __future__ import annotations

import os

from cntr.errors import printable
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.audit import Fields

UNSET = (1 << 32) - 1  # value of loginuid and sessionid (proc(5), audit(8)) without a login
PTS_MAJORS = range(136, 144)  # Documentation/admin-guide/devices.txt
VALUE_LIMIT = 256  # characters of a variable
ANCESTORS = 16


def fields() -> Fields:
    """The record's fields about the caller. The kernel vouches for ``user.*`` and the terminal; sudo's and ssh's come
    from the environment.
    """
    stat = procfs.read("/proc/self/stat").rpartition(")")[2].split()
    uid, passwd = real_uid(), _text("/etc/passwd")
    login, session = _number("/proc/self/loginuid"), _number("/proc/self/sessionid")
    found: Fields = {
        "user.id": str(uid),
        "user.name": _name(passwd, uid),
        "user.audit.id": "" if login == UNSET else str(login),
        "user.audit.name": "" if login == UNSET else _name(passwd, login),
        "cntr.audit.session": "" if session == UNSET else str(session),
        "cntr.sudo.user": _variable("SUDO_USER"),
        "cntr.sudo.uid": _variable("SUDO_UID"),
        "cntr.tty": terminal(int(stat[4])),
        "host.hostname": printable(os.uname().nodename),
        "process.pid": os.getpid(),
    }
    address, _, rest = ssh_connection(int(stat[1])).partition(" ")
    port = rest.partition(" ")[0]
    if port.isdecimal():
        found["source.ip"], found["source.port"] = address, int(port[:5])
    return found


def real_uid() -> int:
    """The caller's uid. For the owner of a rootless container, who has entered its user namespace, the uid outside."""
    try:
        rows = procfs.id_map(procfs.read("/proc/self/uid_map"))
    except (OSError, ValueError):
        return os.getuid()
    outside = procfs.map_id(os.getuid(), rows)
    return os.getuid() if outside is None else outside


def login_uid() -> int | None:
    """The audit uid, which sudo(8) and su(1) do not change; None without a login."""
    number = _number("/proc/self/loginuid")
    return None if number == UNSET else number


def terminal(device: int) -> str:
    """The controlling terminal's name, from field 7 of /proc/PID/stat; "" if none (proc(5): bits 31-20 and 7-0 are the
    minor number).
    """
    if not device:
        return ""
    major, minor = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
    if major in PTS_MAJORS:
        return f"pts/{(major - PTS_MAJORS[0]) * 256 + minor}"
    return f"tty{minor}" if major == 4 and minor < 64 else f"ttyS{minor - 64}" if major == 4 else f"{major}:{minor}"


def ssh_connection(parent: int) -> str:
    """The caller's SSH_CONNECTION; behind sudo, which removes it, that of the nearest ancestor. "" if none."""
    own = os.environ.get("SSH_CONNECTION", "")
    if own or "SUDO_UID" not in os.environ:
        return printable(own[:VALUE_LIMIT])
    for _ in range(ANCESTORS):
        if parent <= 1:
            break
        try:
            text = procfs.read(f"/proc/{parent}/environ", limit=1 << 17)
            parent = procfs.parent_pid(procfs.read(f"/proc/{parent}/stat"))
        except (OSError, ValueError, IndexError):
            break
        for entry in text.split("\0"):
            if entry.startswith("SSH_CONNECTION="):
                return printable(entry[15:][:VALUE_LIMIT])
    return ""


def _name(passwd: str, uid: int) -> str:
    """The name of UID in /etc/passwd. Directory services are not asked: one that hangs must not keep a session from
    starting.
    """
    entry = procfs.passwd_entry(passwd, str(uid))
    return printable(entry[0]) if entry else ""


def _variable(name: str) -> str:
    return printable(os.environ.get(name, "")[:VALUE_LIMIT])


def _number(path: str) -> int:
    text = _text(path)
    return int(text) if text.strip().isdecimal() else UNSET


def _text(path: str) -> str:
    try:
        return procfs.read(path)
    except OSError:  # ENOENT: a kernel without audit
        return ""
