"""What users' own engines know, asked by root: one process per user that has become that user, with little memory and time.

What a user wrote (state files, databases, sockets' answers) is read and parsed there, as that user and nobody else, and what comes back
is a few short lines, each of them that user's word: it counts for that user's own processes alone. A user's cntr asks the same way.
"""

from __future__ import annotations

import os
import time

from cntr.engines import evidence, store, trust
from cntr.engines.container import Container
from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from cntr.engines.registry import Answer

MOST_USERS, MOST_CONTAINERS = 64, 10_000  # who are asked at once; what each may have
MOST_BYTES, MOST_TEXT = 1 << 20, 512  # of an answer; characters of a name
MEMORY, SECONDS = 256 << 20, 3  # above what the process has; of processor time
TRACES = ("docker.sock", "crun", "runc", "containers", "podman", "lxc")  # in a user's runtime directory
VARIABLES = ("DOCKER_HOST", "CONTAINERS_STORAGE_CONF", "APPTAINER_CONFIGDIR")
MONITORS = ("conmon", "buildah-chroot-exec", "buildah-oci-runtime")
FIELDS = 8  # kind, engine, name or words, pid, id, image, state, start time
POLLIN, SIGKILL = 1, 9


class Asked:
    """A user's process: whose it is, its pid, and the pipe from it."""

    __slots__ = ("chunks", "fd", "late", "pid", "size", "uid")

    def __init__(self, uid: int, pid: int, fd: int) -> None:
        self.uid, self.pid, self.fd, self.late = uid, pid, fd, True
        self.chunks: list[bytes] = []
        self.size = 0

    def read(self) -> bool:
        """Take what is there; False at the end, or when it is too much."""
        chunk = os.read(self.fd, 1 << 16)
        self.chunks.append(chunk)
        self.size += len(chunk)
        return bool(chunk) and self.size <= MOST_BYTES

    def end(self) -> bytes:
        """Its answer. What is left of it is killed: it has said all, or is out of time."""
        os.close(self.fd)
        try:
            os.kill(self.pid, SIGKILL)
        except ProcessLookupError:
            pass
        for _ in range(20):  # not for ever: one that waits for a dead disk does not even hear SIGKILL
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.001)
        return b"".join(self.chunks)


def who(monitors: bool) -> list[int]:
    """The users of whom something is to be asked: by their runtime directories, by what the caller's variables name, by their monitors."""
    found: dict[int, None] = {}
    mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
    for name in store.listdir("/run/user"):
        path = f"/run/user/{name}"
        # Names alone: what is called so may be the mount point of a file system of the user's making, which never answers.
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


def start(users: list[int], answer: Callable[[], bytes]) -> list[Asked]:
    """A process for each of USERS that says what ANSWER gives there. All that ANSWER imports must be loaded."""
    import resource

    asked = []
    for uid in users:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid:
            os.close(writing)
            asked.append(Asked(uid, pid, reading))
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
    """Keep nothing but PIPE, as fd 0; then no more than UID's own rights, little memory, little time."""
    os.dup2(pipe, 0)
    syscalls.close_range(1, 0)
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
    # Not to be traced by the user, nor to go on without whoever asked.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, SIGKILL)


def said(answers: list[Answer]) -> bytes:
    """Answers as what ``hear`` takes apart."""
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


def listen(asked: list[Asked], deadline: float) -> list[tuple[Asked, bytes]]:
    """What each has said by DEADLINE; then they are ended, and those that had not come to their end are late."""
    import select

    running = {one.fd: one for one in asked}
    while running and (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for fd in running:
            poll.register(fd, POLLIN)
        for fd, _ in poll.poll(left * 1000):
            if not running[fd].read():
                running.pop(fd).late = False
    return [(one, one.end()) for one in asked]


def hear(asked: list[Asked], deadline: float) -> list[tuple[int, list[str]]]:
    """(uid, the fields of a line) for all that the users' processes have said by DEADLINE."""
    lines = []
    for one, answer in listen(asked, deadline):
        fields = os.fsdecode(answer).split("\0")
        lines += [(one.uid, fields[at : at + FIELDS]) for at in range(0, len(fields) - FIELDS + 1, FIELDS)]
        if one.late:
            lines.append((one.uid, ["r", "", "no answer in time", "", "", "", "", ""]))
    return lines


def container(uid: int, fields: list[str], engines: set[str]) -> Container | None:
    """The container of a line, as far as UID's word counts: its process is that user's own, and what it says of it is looked at."""
    _, engine, name, pid_text, id, image, _, start_text = fields
    if engine not in engines or not pid_text.isdecimal() or not start_text.isdecimal():
        return None
    pid, start = int(pid_text[:10]), int(start_text[:20])
    if pid and (evidence.start_time(pid) != start or not evidence.belongs_to(pid, uid)):
        return None
    state = "sandboxed" if not pid or evidence.sandbox(pid) else evidence.state(pid)
    return Container(engine, name, pid, id=id, image=image, state=state, owner=uid, start_time=start)
