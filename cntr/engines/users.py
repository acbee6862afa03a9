"""Asks users' own engines on behalf of root: one process per user, with that user's ids and bounded memory and time.

Files and answers that a user controls (state files, databases, sockets) are read and parsed with that user's rights
only. The result is a few short lines, which count as claims of that user about the user's own processes. A user's own
cntr works the same way.
"""

from __future__ import annotations

import os
import time

from cntr.engines import evidence, pids, store, trust
from cntr.engines.container import Container
from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from cntr.engines.answer import Answer

MOST_USERS, MOST_CONTAINERS = 64, 10_000  # users asked at once; containers of each
MOST_BYTES, MOST_TEXT = 1 << 20, 512  # bytes of an answer; characters of a name
MEMORY, SECONDS = 256 << 20, 3  # bytes above what the process has; seconds of processor time
TRACES = ("docker.sock", "crun", "runc", "containers", "podman", "lxc")  # in a user's runtime directory
VARIABLES = ("DOCKER_HOST", "CONTAINERS_STORAGE_CONF", "APPTAINER_CONFIGDIR")
MONITORS = ("conmon", "buildah-chroot-exec", "buildah-oci-runtime")
READ_SECONDS = 0.2  # for reading what is there when the time is over
FIELDS = 8  # kind, engine, name or message, pid, id, image, state, start time
POLLIN, SIGKILL = 1, 9


class UserQuery:
    """A user's process: its uid, its pid, and the pipe from it."""

    __slots__ = ("chunks", "fd", "late", "pid", "size", "uid")

    def __init__(self, uid: int, pid: int, fd: int) -> None:
        self.uid, self.pid, self.fd, self.late = uid, pid, fd, True
        self.chunks: list[bytes] = []
        self.size = 0

    def read(self) -> bool:
        """Read what is available; False at the end, or if it is too much."""
        chunk = os.read(self.fd, 1 << 16)
        self.chunks.append(chunk)
        self.size += len(chunk)
        return bool(chunk) and self.size <= MOST_BYTES

    def end(self) -> bytes:
        """Return its answer and kill what is left of it: it has finished, or its time is over."""
        os.close(self.fd)
        try:
            os.kill(self.pid, SIGKILL)
        except ProcessLookupError:
            pass
        for _ in range(20):  # not for ever: a process waiting for a dead disk does not react even to SIGKILL
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.001)
        return b"".join(self.chunks)


def who(monitors: bool) -> list[int]:
    """The users to ask: those with runtime directories, those whom the caller's variables name, and the owners of
    MONITORS.
    """
    found: dict[int, None] = {}
    mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
    for name in store.listdir("/run/user"):
        path = f"/run/user/{name}"
        # Only names are compared: the path may be the mount point of the user's file system that never answers.
        if name.isdecimal() and trust.answers(path, mounts) and not set(TRACES).isdisjoint(trust.some_names(path, "")):
            found[int(name)] = None
    for name in trust.some_names("/tmp", ""):
        head, _, uid = name.rpartition("-")
        known = head in store.FALLBACKS and uid.isdecimal() and trust.answers(f"/tmp/{name}", mounts)
        if known and trust.owner_or_anybody(f"/tmp/{name}") == int(uid):
            found[int(uid)] = None
    for name, value in os.environ.items():
        if name in VARIABLES or (name.startswith("CNTR_") and name.endswith("_ROOT")):
            for path in value.removeprefix("unix://").split(":"):
                if path.startswith("/"):
                    found[trust.owner_or_anybody(path)] = None
    for monitor, _ in evidence.processes_named(*MONITORS) if monitors else ():
        found[evidence.speaker(monitor)] = None
    return [uid for uid in found if uid > 0][:MOST_USERS]


def start(users: list[int], answer: Callable[[], bytes]) -> list[UserQuery]:
    """Start a process for each of USERS that writes the result of ANSWER. Everything ANSWER imports must be loaded."""
    import resource

    asked = []
    for uid in users:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid:
            os.close(writing)
            asked.append(UserQuery(uid, pid, reading))
            continue
        try:
            _become(uid, writing, resource)
            text = answer()
            while text:
                text = text[os.write(0, text) :]
        except BaseException:  # noqa: BLE001  whatever a user's files did to it: nothing was said
            pass
        finally:
            os._exit(0)
    return asked


def _become(uid: int, pipe: int, resource: ModuleType) -> None:
    """Close everything except PIPE, which becomes fd 0; then take on UID's rights, and limits on memory and time."""
    os.dup2(pipe, 0)
    syscalls.close_range(1)
    trust.speak_for(uid)
    home, gid = store.home_and_group(uid)
    kept = {key: value for key, value in os.environ.items() if key in VARIABLES or key.startswith(("CNTR_", "PYTHON"))}
    os.environ.clear()
    os.environ.update(kept, HOME=home or "/", LC_ALL="C")
    with open("/proc/self/statm") as stream:
        pages = int(stream.read().split()[0])
    for limit, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(limit)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (least, least))
    os.chdir("/")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # The user must not trace it, and it must not outlive its parent.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, SIGKILL)


def said(answers: list[Answer]) -> bytes:
    """Answers in the format that ``hear`` parses."""
    fields: list[str] = []
    for answer in answers:
        engine = answer.entry.name
        if answer.refused:
            fields += ["s" if answer.stopped else "r", engine, _short(answer.refused), "", "", "", "", ""]
        for found in answer.containers[:MOST_CONTAINERS]:
            texts = (_short(found.engine), _short(found.name), str(found.pid), _short(found.id), _short(found.image))
            fields += ["c", *texts, found.state, str(found.start_time)]
    return "\0".join(fields).encode("utf-8", "surrogateescape")


def _short(text: str) -> str:
    return text.replace("\0", "")[:MOST_TEXT]


def listen(asked: list[UserQuery], deadline: float) -> list[tuple[UserQuery, bytes]]:
    """What each process has written by DEADLINE. All are then ended; an unfinished one is late.

    One of root's engines may have used up the time: what has been written until now is read nevertheless.
    """
    import select

    running = {one.fd: one for one in asked}
    end = max(deadline, time.monotonic() + READ_SECONDS)
    while running:
        poll = select.poll()
        for fd in running:
            poll.register(fd, POLLIN)
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for fd, _ in ready:
            if not running[fd].read():
                running.pop(fd).late = False
        if not ready or time.monotonic() > end:
            break
    return [(one, one.end()) for one in asked]


def hear(asked: list[UserQuery], deadline: float) -> list[tuple[int, list[str]]]:
    """(uid, fields of a line) for everything that the users' processes have written by DEADLINE."""
    lines = []
    for one, answer in listen(asked, deadline):
        fields = os.fsdecode(answer).split("\0")
        lines += [(one.uid, fields[at : at + FIELDS]) for at in range(0, len(fields) - FIELDS + 1, FIELDS)]
        if one.late:
            lines.append((one.uid, ["r", "", "no answer in time", "", "", "", "", ""]))
    return lines


def container(uid: int, fields: list[str], engines: set[str]) -> Container | None:
    """The container on a line, if UID may claim it: the process must be that user's own, and the fields are checked."""
    _, engine, name, pid_text, id, image, _, start_text = fields
    if engine not in engines or not pid_text.isdecimal() or not start_text.isdecimal():
        return None
    pid, start = int(pid_text[:10]), int(start_text[:20])
    if pid and (pids.start_time(pid) != start or not evidence.belongs_to(pid, uid)):
        return None
    state = "sandboxed" if not pid or evidence.sandbox(pid) else evidence.state(pid)
    return Container(engine, name, pid, id=id, image=image, state=state, owner=uid, start_time=start)
