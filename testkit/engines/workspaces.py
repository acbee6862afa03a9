"""The basis of every rig: a private directory, a mark on everything started, and a clean-up that always happens.

A rig's directory has a unique name, ``/tmp/cntr-rig-PID-xxxxxxxx``. That name is in everything the rig starts: in the
arguments or the environment of its daemons and monitors, in the source of its containers' root mount, in the names of
its cgroups. ``clean`` ends, unmounts and removes what has the name. It runs at the end of the session. If pytest is
killed, even by SIGKILL, a guard process sees end of file on a pipe from pytest and runs it.
"""

from __future__ import annotations

import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

from cntr.linux import procfs, syscalls
from testkit.elf import static_program
from testkit.waiting import wait_until

PREFIX = "cntr-rig-"
UNIFIED = "/sys/fs/cgroup/unified"

# crun refuses hybrid cgroups; in a mount namespace without the unified hierarchy it sees plain version 1.
WITHOUT_UNIFIED = ("unshare", "-m", "--propagation", "private", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh")

# Root without CAP_SYS_RESOURCE may not raise limits, so engines must not try.
ULIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


def cg1() -> tuple[str, ...]:
    """The command prefix that hides the unified hierarchy; empty if there is none."""
    return WITHOUT_UNIFIED if os.path.ismount(UNIFIED) else ()


class Failed(Exception):
    """A rig's command failed: the command and its output."""


def run(
    argv: Sequence[str], *, env: dict[str, str] | None = None, timeout: float = 60, input: bytes | None = None
) -> str:
    """Run a rig's command; return its output. Raises Failed with all of the output."""
    try:
        done = subprocess.run(
            list(argv),
            env=env,
            timeout=timeout,
            capture_output=True,
            input=input or b"",
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(argv)}: no end within {timeout:g} s: {error.stderr!r}") from None
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}")
    return done.stdout.decode()


class Workspace:
    """A rig's private directory and everything marked with its name."""

    def __init__(self) -> None:
        """Make the directory and start the guard."""
        self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp")
        os.chmod(self.path, 0o711)  # rootless users need to pass through it
        self.mark = os.path.basename(self.path)
        self.env = {**os.environ, "CNTR_RIG": self.mark, "LC_ALL": "C", "TMPDIR": self.path}
        for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINERS_STORAGE_CONF", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET"):
            self.env.pop(name, None)
        self.daemons: list[subprocess.Popen[bytes]] = []
        self._pipe = self._guard()

    def _guard(self) -> int:
        """Fork the process that cleans up if this one dies: it waits for the end of a pipe from this process."""
        reading, writing = os.pipe()
        first = os.fork()
        if first == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    os.closerange(0, reading)
                    os.closerange(reading + 1, 1 << 12)
                    if os.read(reading, 1) == b"":
                        clean(self.mark)
            finally:
                os._exit(0)
        os.waitpid(first, 0)
        os.close(reading)
        return writing

    def close(self) -> None:
        """Clean up now and end the guard."""
        clean(self.mark)
        for process in self.daemons:
            process.wait(timeout=10)
        try:
            os.write(self._pipe, b".")
        except BrokenPipeError:
            pass  # the guard is gone already
        os.close(self._pipe)

    def daemon(
        self, argv: Sequence[str], *, log: str, env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a daemon in the background, its output in the file LOG of the workspace; STDIN is a file made for it."""
        with open(f"{self.path}/{log}", "ab") as stream, open(stdin or os.devnull, "w+b" if stdin else "rb") as source:
            process = subprocess.Popen(
                list(argv), env=env or self.env, stdin=source, stdout=stream, stderr=stream, start_new_session=True
            )
        self.daemons.append(process)
        return process

    def log(self, name: str) -> str:
        """The last lines of a log, for a failure's message."""
        try:
            return "\n".join(pathlib.Path(self.path, name).read_text(errors="replace").splitlines()[-15:])
        except OSError as error:
            return str(error)

    def wait_for(
        self,
        what: str,
        probe: Callable[[], object],
        *,
        seconds: float = 30,
        process: subprocess.Popen[bytes] | None = None,
        log: str = "log",
    ) -> None:
        """Wait until PROBE() is true. Raises Failed if PROCESS ends first, or on a timeout."""
        try:
            wait_until(lambda: probe() or (process is not None and process.poll() is not None), what, seconds)
        except AssertionError as error:
            raise Failed(f"{error}\n{self.log(log)}") from None
        if process is not None and process.poll() is not None and not probe():
            raise Failed(f"{what}: it ended with {process.returncode}\n{self.log(log)}")


def users_view(directory: str, rows: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """A command prefix: a private mount namespace whose /etc/{passwd,group,subuid,subgid} contain ROWS too.

    Rootless engines and userns-remap need a user with subordinate ids; the machine's own files are not changed.
    """
    for file, line in (
        ("passwd", "{0}:x:{1}:{1}::" + directory + "/home-{0}:/bin/sh\n"),
        ("group", "{0}:x:{1}:\n"),
        ("subuid", "{0}:300000:65536\n"),
        ("subgid", "{0}:300000:65536\n"),
    ):
        try:
            text = pathlib.Path("/etc", file).read_text()
        except FileNotFoundError:
            text = ""
            pathlib.Path("/etc", file).touch()
        names = tuple(f"{name}:" for name, _ in rows)
        kept = "".join(row + "\n" for row in text.splitlines() if not row.startswith(names))
        pathlib.Path(directory, f"etc-{file}").write_text(kept + "".join(line.format(*row) for row in rows))
        os.chmod(f"{directory}/etc-{file}", 0o644)
    binds = "".join(
        f"mount --bind {directory}/etc-{file} /etc/{file} && " for file in ("passwd", "group", "subuid", "subgid")
    )
    hide = f"umount {UNIFIED} && " if os.path.ismount(UNIFIED) else ""
    return ("unshare", "-m", "--propagation", "private", "sh", "-c", f'{hide}{binds}exec "$@"', "sh")


# --- images -----------------------------------------------------------------------------------------------------------


def busybox_root(path: str) -> str:
    """Make a root directory with static busybox and little else."""
    busybox = shutil.which("busybox") or ""
    for directory in ("bin", "proc", "sys", "dev", "etc", "tmp", "data"):
        os.makedirs(f"{path}/{directory}")
    os.chmod(f"{path}/tmp", 0o1777)
    shutil.copy(busybox, f"{path}/bin/busybox")
    for applet in (
        "sh",
        "sleep",
        "cat",
        "ls",
        "id",
        "echo",
        "true",
        "mount",
        "ps",
        "env",
        "pwd",
        "stat",
        "touch",
        "nc",
    ):
        os.symlink("busybox", f"{path}/bin/{applet}")
    pathlib.Path(path, "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nslim:x:1000:1000:slim:/:/bin/sh\n")
    pathlib.Path(path, "etc/group").write_text("root:x:0:\nslim:x:1000:\nextra:x:2000:slim\n")
    pathlib.Path(path, "etc/motto").write_text("slim\n")
    return path


def scratch_root(path: str) -> str:
    """Make a root directory with one static program, /app, that waits: no shell, no /etc."""
    os.makedirs(path)
    program = pathlib.Path(path, "app")
    program.write_bytes(static_program())
    program.chmod(0o755)
    return path


# --- clean-up ---------------------------------------------------------------------------------------------------------


def clean(mark: str) -> None:
    """End every process, unmount every mount, and remove every cgroup and directory that has MARK."""
    assert mark.startswith(PREFIX)
    for _ in range(100):
        marked = _marked(mark)
        for pid in marked:
            _thaw(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not marked:
            break
        time.sleep(0.02)
    for mount in reversed(procfs.mountinfo(procfs.read("/proc/self/mountinfo"))):
        if mark in mount.mount_point:
            try:
                syscalls.umount(mount.mount_point, syscalls.MNT_DETACH)
            except OSError:
                continue
    for _ in range(50):  # a cgroup stays busy until its last zombie is reaped
        if not _remove_cgroups(mark):
            break
        time.sleep(0.02)
    shutil.rmtree(f"/tmp/{mark}", ignore_errors=True)


def _marked(mark: str) -> list[int]:
    """The processes that have MARK in their arguments, environment, or the source of their root mount."""
    found = []
    needle = os.fsencode(mark)
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            if _state(name) == "Z":
                continue
            texts = [pathlib.Path("/proc", name, file).read_bytes() for file in ("cmdline", "environ")]
            if any(needle in text for text in texts) or needle in _root_mount(name):
                found.append(int(name))
        except OSError:
            continue
    own = set(_ancestors())
    return [pid for pid in found if pid not in own]


def _state(pid: str) -> str:
    return procfs.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


def _ancestors() -> list[int]:
    pid, line = os.getpid(), []
    while pid:
        line.append(pid)
        pid = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    return line


def _root_mount(pid: str) -> bytes:
    """The line of the mount at / in mountinfo: an overlay names its directories, a bind mount its source.

    Processes in this process's own mount namespace, which are most, are skipped: its root names no rig.
    """
    if os.stat(f"/proc/{pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino:
        return b""
    lines = pathlib.Path("/proc", pid, "mountinfo").read_bytes().split(b"\n")
    return b"\n".join(line for line in lines if line.split(b" ")[4:5] == [b"/"])


def _thaw(pid: int) -> None:
    """Unfreeze a version 1 cgroup, as SIGKILL has no effect on frozen processes."""
    try:
        paths = procfs.cgroups(procfs.read(f"/proc/{pid}/cgroup"))
    except OSError:
        return
    for controllers, path in paths.items():
        files = {f"/sys/fs/cgroup/freezer{path}/freezer.state": b"THAWED"} if controllers == "freezer" else {}
        if not controllers and path != "/":
            files = {f"{root}{path}/cgroup.freeze": b"0" for root in ("/sys/fs/cgroup", UNIFIED)}
        for file, text in files.items():
            try:
                pathlib.Path(file).write_bytes(text)
            except OSError:
                continue


def _remove_cgroups(mark: str) -> bool:
    """Remove the cgroups below those named by MARK; return whether any is left."""
    left = False
    for hierarchy in [*pathlib.Path("/sys/fs/cgroup").glob("*"), pathlib.Path("/sys/fs/cgroup")]:
        if not hierarchy.is_dir():
            continue
        for top in hierarchy.glob(f"*{mark}*"):
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    left = True
    return left


def unique(kind: str) -> str:
    """A unique container name."""
    return f"{kind}-{secrets.token_hex(4)}"
