"""A test container: the hand-made slim one with busybox, and settings for every property of a process that a session
takes over.

Also functions that run cntr, always through its real command line in a process of its own.
"""

from __future__ import annotations

import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cntr.linux import procfs, syscalls
from testkit.container import SlimContainer
from tests.conftest import MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

REPOSITORY = str(pathlib.Path(__file__).parents[2])
CNTR = [sys.executable, "-m", "cntr"]
BUSYBOX = shutil.which("busybox") or "/bin/busybox"
LAST_CAPABILITY = int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text())
OWN_CAPABILITIES = int(procfs.status(procfs.read("/proc/self/status"))["CapPrm"], 16)
APPLETS = ("sh", "cat", "ls", "id", "sleep", "env", "readlink", "true", "wc", "touch", "stat")


@dataclass
class BusyboxContainer(SlimContainer):
    """SlimContainer with busybox, and more properties to take over.

    groups, gid: ids beside uid; ambient: capabilities kept across the change of uid; limits: {RLIMIT_*: (soft, hard)};
    cgroups: directories it is moved into; mounts: called in its mount namespace with the root's host path, before the pivot;
    as_root: called after the pivot, before it gives up its capabilities.
    """

    busybox: bool = True
    gid: int = -1
    groups: tuple[int, ...] = ()
    ambient: int = 0
    no_new_privs: bool = False
    oom_score_adj: int | None = None
    limits: dict[int, tuple[int, int]] = field(default_factory=dict)
    cgroups: Sequence[str] = ()
    mounts: Callable[[str], None] | None = None
    as_root: Callable[[], None] | None = None
    links: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make busybox's applets symbolic links, as in any busybox image."""
        self.environment = {**self.environment, MARK: os.environ.get(MARK, "")}
        if self.busybox:
            self.programs = {"/bin/busybox": BUSYBOX, **self.programs}
            self.links = {**{f"/bin/{applet}": "busybox" for applet in APPLETS}, **self.links}

    def __enter__(self) -> Self:
        """Make the links in the root before the container sees it."""
        if self.root == pathlib.Path():
            import tempfile

            self._own = tempfile.TemporaryDirectory(prefix=f"cntr-{self.name}-")
            self.root = pathlib.Path(self._own.name)
        for path, target in self.links.items():
            link = self.root / path.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        super().__enter__()
        for directory in self.cgroups:
            pathlib.Path(directory, "cgroup.procs").write_text(str(self.pid))
        return self

    def _pivot(self) -> None:
        if self.mounts:
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount(str(self.root), str(self.root), None, syscalls.MS_BIND)
            os.chdir(self.root)
            self.mounts(str(self.root))
        super()._pivot()

    def _drop(self) -> None:
        if self.as_root:
            self.as_root()
        if self.oom_score_adj is not None:
            pathlib.Path("/proc/self/oom_score_adj").write_text(str(self.oom_score_adj))
        for limit, values in self.limits.items():
            resource.setrlimit(limit, values)
        for capability in range(LAST_CAPABILITY + 1):
            if not self.capabilities >> capability & 1:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        os.setgroups(self.groups)
        gid = self.uid if self.gid < 0 else self.gid
        os.setresgid(gid, gid, gid)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        os.setresuid(self.uid, self.uid, self.uid)
        held = self.ambient if self.uid else self.capabilities & OWN_CAPABILITIES
        syscalls.capset(held, held, self.ambient)
        for capability in range(64):
            if self.ambient >> capability & 1:
                syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, capability)
        if self.no_new_privs:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)

    def attach(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """``cntr attach PID ARGUMENTS``; see ``run``."""
        return run("attach", str(self.pid), *arguments, **options)  # type: ignore[arg-type]

    def sh(self, script: str, *arguments: str, **options: object) -> str:
        """The output of SCRIPT in a session, which must succeed without output on stderr."""
        done = self.attach(*arguments, "--", "sh", "-c", script, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def exec(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """``cntr exec PID ARGUMENTS``."""
        return run("exec", str(self.pid), *arguments, **options)  # type: ignore[arg-type]


def run(
    *arguments: str,
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
    input: str = "",
    timeout: float = 30,
    code: str = "",
    **more: object,
) -> subprocess.CompletedProcess[str]:
    """Run cntr. env: added to the environment; prefix: a command to run it under; code: Python code that runs it."""
    return subprocess.run(
        [*prefix, *([sys.executable, "-c", code] if code else CNTR), *arguments],
        env={**os.environ, "PYTHONPATH": REPOSITORY, **(env or {})},
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **more,  # type: ignore[call-overload]
    )


@contextmanager
def session(target: str, *arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A session that runs ``sh`` on a pipe and has started when the block begins: write commands, read answers."""
    process = subprocess.Popen(
        [*CNTR, "attach", target, *arguments, "--", "sh"],
        env={**os.environ, "PYTHONPATH": REPOSITORY, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ask(process, "echo ready")
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        finally:
            process.stdout.close()  # type: ignore[union-attr]
            process.stderr.close()  # type: ignore[union-attr]


def ask(process: subprocess.Popen[str], command: str) -> str:
    """The single line that COMMAND prints in a ``session``."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    return line.strip()


def one_line_and_hint(done: subprocess.CompletedProcess[str], code: int = 125) -> str:
    """The message of a failed run: exactly one line, then one hint line, and no traceback."""
    assert done.returncode == code, done
    message, hint, *more = done.stderr.splitlines()
    assert message.startswith("cntr: "), done.stderr
    assert hint.startswith("hint: "), done.stderr
    assert not more, done.stderr
    return message
