"""The list of running sessions, found by looking at processes, so a killed session leaves no entry behind.

Each session has a memfd (``Session.announce``) with its description. The description is only a claim of its process, so
it must name the process's own user, and processes in containers do not count. A link in /proc/PID/fd is recognized as a
memfd by its mount, before anything is opened: a file of the same name could be on a file system that never answers.
"""

from __future__ import annotations

import _signal as signal
import json
import os
import select

from cntr.audit.session import ANNOUNCED
from cntr.engines import store
from cntr.errors import CntrError, printable
from cntr.linux import procfs

LINK = f"/memfd:{ANNOUNCED} (deleted)"
LIMIT = 1 << 16  # bytes read of a description
NEAR = 3  # generations
CAP_SYS_ADMIN = 1 << 21
PATIENCE_SECONDS = 8.0  # for a session that was told to end: its command gets two seconds


class RunningSession:
    """A session: its process, that process's owner, and the fields of its record. start: of the
    process (proc(5), field 22).
    """

    __slots__ = ("fields", "pid", "start", "uid")

    def __init__(self, pid: int, start: int, uid: int, fields: dict[str, object]) -> None:
        self.pid, self.start, self.uid, self.fields = pid, start, uid, fields

    def text(self, key: str) -> str:
        """A field as text, "" if missing. Escape it before printing: it may contain anything."""
        value = self.fields.get(key, "")
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    def user(self) -> str:
        """The user: if the process is not root's, by its ids in the kernel, not by its own record."""
        if self.uid:
            return store.owner_name(self.uid)
        return (
            self.text("user.audit.name")
            or self.text("cntr.sudo.user")
            or self.text("user.name")
            or self.text("user.id")
        )

    def whose(self) -> int:
        """The uid of the user that a policy applies to; of root's process that is its own word."""
        words = (str(self.uid or ""), self.text("user.audit.id"), self.text("cntr.sudo.uid"), "0")
        return int(next(word for word in words if word.isdecimal())[:10])

    def container(self) -> str:
        """The container to show."""
        name = self.text("container.name") or self.text("container.id")
        return f"{self.text('container.runtime')}:{name}" if name else self.text("cntr.target")


def sessions(of: int | None = None) -> list[RunningSession]:
    """The sessions on this machine that the caller may see, oldest first: root sees all, others see their own. of: only
    those of that user.
    """
    place = _memfds_mount()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and (one := _session(int(name), place)) and of in (None, one.whose()):
            found.append(one)
    return sorted(found, key=lambda one: one.start)


def begun_in() -> dict[str, object]:
    """The record fields of the session, of the same user, from which this process was started by ``cntr exec``; {} if
    none.

    The ancestors of such a process are the handler, the server and the supervisor (``attach.exec_handler``).
    """
    place, pid = _memfds_mount(), os.getppid()
    for _ in range(NEAR):
        found = _session(pid, place)
        if found:
            return found.fields if found.text("user.id") == str(os.getuid()) else {}
        try:
            pid = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
        except (OSError, ValueError, IndexError):
            break
    return {}


def end(id: str, number: int, of: int | None = None) -> RunningSession:
    """End the session whose id begins with ID, as a hang-up would; return it when it has ended. Raises CntrError.

    number: the signal by which its supervisor is told; of: see ``sessions``.
    """
    matching = [one for one in sessions(of) if id and one.text("event.id").startswith(id)]
    if not os.geteuid():  # a user's process may claim the record id of one of root's sessions
        matching = [one for one in matching if not one.uid] or matching
    if len(matching) != 1:
        what = "no session has that id" if not matching else f"{len(matching)} sessions have an id that begins so"
        raise CntrError(f"sessions end {printable(id[:40])}: {what}", "`cntr sessions` lists them")
    one = matching[0]
    try:
        pidfd = os.pidfd_open(one.pid)
    except ProcessLookupError:
        return one
    try:
        if _session(one.pid, _memfds_mount()) is None:
            return one  # it has ended, and its pid was reused
        signal.pidfd_send_signal(pidfd, number)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(PATIENCE_SECONDS * 1000):
            raise CntrError(
                f"sessions end {printable(id)}: it has not ended in {PATIENCE_SECONDS:.0f} s",
                f"`kill -9 {one.pid}` ends what is left of it",
            )
    except ProcessLookupError:
        pass
    except PermissionError:
        raise CntrError(f"sessions end {printable(id)}: it is another user's", "only root can end it") from None
    finally:
        os.close(pidfd)
    return one


def _session(pid: int, place: str) -> RunningSession | None:
    """The session that a process runs, or None. A session has one memfd of that name; a user's
    process may have a million.
    """
    directory = f"/proc/{pid}"
    try:
        for fd in os.listdir(f"{directory}/fd"):
            if os.readlink(f"{directory}/fd/{fd}") != LINK or _mount_id(f"{directory}/fdinfo/{fd}") != place:
                continue
            text = procfs.read(f"{directory}/fd/{fd}", limit=LIMIT)
            fields = json.loads(text)
            status = procfs.status(procfs.read(f"{directory}/status"))
            start = procfs.start_time(procfs.read(f"{directory}/stat"))
            uid = status["Uid"].split()[0]
            is_one = isinstance(fields, dict) and fields.get("user.id") == uid and _is_ours(pid, status)
            return RunningSession(pid, start, int(uid), fields) if is_one else None
    except (OSError, ValueError, KeyError, RecursionError):
        return None  # it has ended, belongs to another user, or has an unknown description
    return None


def _is_ours(pid: int, status: dict[str, str]) -> bool:
    """Whether it is not in a container: there, root may have the host's uid 0, but is in another pid namespace or lacks
    capabilities.
    """
    if status["Uid"].split()[0] == "0" and not int(status["CapBnd"], 16) & CAP_SYS_ADMIN:
        return False
    return os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.stat("/proc/self/ns/pid"))


def _memfds_mount() -> str:
    fd = os.memfd_create("cntr-looks", 1)
    try:
        return _mount_id(f"/proc/self/fdinfo/{fd}")
    finally:
        os.close(fd)


def _mount_id(path: str) -> str:
    return procfs.status(procfs.read(path, limit=4096))["mnt_id"]
