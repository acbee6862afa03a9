"""Runs the engines' own commands: only those owned by root, without a terminal, with bounded output, killed at the
deadline.
"""

from __future__ import annotations

import os
import time

from cntr.engines import trust
from cntr.linux import procfs

PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
LIMIT = 16 << 20  # bytes of one command's output
# the same everywhere except on MIPS; Python ignores the last two, and commands must not
SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25
POLLIN = 1


def trusted(program: str) -> str:
    """The path of a command that only root can have installed, "" if there is none. $PATH is not used: the user
    controls it.
    """
    for directory in PATH:
        path = os.path.realpath(f"{directory}/{program}")
        if os.access(path, os.X_OK) and os.path.isfile(path) and _is_roots(directory) and _is_roots(path):
            return path
    return ""


def _is_roots(path: str) -> bool:
    """Whether PATH and all directories above it belong to root and nobody else can write to them."""
    while True:
        try:
            info = os.stat(path)
        except OSError:
            return False
        if info.st_uid or info.st_mode & 0o022:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


# Where an engine's daemon, store and settings are; and the words that are no paths.
PLACES = (
    "HOME XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME DOCKER_HOST DOCKER_CONFIG DOCKER_CERT_PATH CONTAINER_HOST CONTAINERS_CONF "
    "CONTAINERS_STORAGE_CONF CONTAINERS_REGISTRIES_CONF CONTAINERD_ADDRESS CONTAINER_RUNTIME_ENDPOINT TMPDIR"
).split()
WORDS = "STORAGE_DRIVER USER LOGNAME LANG DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_TLS DOCKER_API_VERSION CONTAINERD_NAMESPACE".split()


def environment() -> dict[str, str]:
    """The variables that an engine's command gets: a user's own; of root's those that lead to what only root can change.

    A file of settings names programs to run (``conmon_path`` of containers.conf(5), docker's plugins), and sudo(8) may
    have kept a user's variables.
    """
    if not procfs.has_all_ids():
        found = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "DEBUG")}
    else:
        found = {key: os.environ[key] for key in WORDS if key in os.environ}
        found |= {key: os.environ[key] for key in PLACES if key in os.environ and _leads_to_roots(os.environ[key])}
        found |= {key: value for key, value in os.environ.items() if key.startswith("CNTR_")}
        found["PATH"] = ":".join(PATH)
        if "HOME" not in found:
            entry = procfs.passwd_entry(procfs.read("/etc/passwd"), "0")
            found["HOME"] = entry[3] if entry else "/"
    return found


def _leads_to_roots(value: str) -> bool:
    scheme, separator, rest = value.partition("://")
    if separator and scheme != "unix":
        return scheme == "tcp"  # docker's, which is asked about by docker.check_tcp
    path = rest if separator else value
    return path.startswith("/") and trust.accepts(trust.owner_or_anybody(path))


class Invocation:
    """A running command: its process and the read end of its output."""

    __slots__ = ("chunks", "fd", "pid", "size")

    def __init__(self, argv: list[str], variables: dict[str, str] | None = None) -> None:
        """Start it. variables: its own, None for ``environment``. Raises OSError."""
        # setpriv sets the parent-death signal, which posix_spawn(3) cannot: if cntr is killed, a hanging command must
        # not stay.
        setpriv = trusted("setpriv")
        if setpriv.endswith("/setpriv"):  # util-linux's: busybox's lacks the option
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        variables = dict(environment() if variables is None else variables)
        variables.update(PATH=":".join(PATH), LC_ALL="C", TERM="dumb")
        self.chunks: list[bytes] = []
        self.size = 0
        self.fd, writing = os.pipe2(os.O_CLOEXEC)
        actions = (  # the pipe first: it may be fd 0 or 2 if the caller has closed those
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        )
        try:
            # A session of its own: no terminal to prompt on, and one signal ends all its processes.
            self.pid = os.posix_spawn(
                *(argv[0], argv, variables),
                file_actions=actions,
                setsid=True,
                setsigdef=(SIGPIPE, SIGXFSZ),
                setsigmask=(),
            )
        except BaseException:  # including ValueError: posix_spawn(3) takes no NUL byte
            os.close(self.fd)
            raise
        finally:
            os.close(writing)

    def read(self) -> bool:
        """Read what is available; False at the end, or if it is too much."""
        chunk = os.read(self.fd, 1 << 16)
        self.chunks.append(chunk)
        self.size += len(chunk)
        return bool(chunk) and self.size <= LIMIT

    def end(self) -> str:
        """Return its output and kill what is left of it: it has finished, or its time is over."""
        os.close(self.fd)
        try:
            os.killpg(self.pid, SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        for _ in range(20):  # not for ever: a process waiting for a dead disk does not react even to SIGKILL
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.001)
        return os.fsdecode(b"".join(self.chunks))


def output(deadline: float, program: str, *arguments: str, variables: dict[str, str] | None = None) -> str:
    """The output of PROGRAM before DEADLINE; "" if it is missing or not root's, is late, or cannot be run."""
    import select

    path = trusted(program)
    if not path:
        return ""
    try:
        command = Invocation([path, *arguments], variables)
    except OSError:
        return ""
    poll, ended = select.poll(), False
    poll.register(command.fd, POLLIN)
    while not ended and (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            ended = not command.read()
    text = command.end()
    return text if ended else ""


def main_pid(unit: str) -> int:
    """The main process of a system unit (systemctl(1)); 0 if unknown."""
    if not os.path.isdir("/run/systemd/system"):
        return 0
    text = output(time.monotonic() + 2, "systemctl", "show", "--property=MainPID", "--value", "--", unit).strip()
    return int(text) if text.isdecimal() else 0
