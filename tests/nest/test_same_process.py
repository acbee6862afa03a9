"""cntr attaches to the intended process and leaks no fd into it; a process that reuses the pid is not entered."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys

import pytest

from cntr.attach.target import Target
from cntr.engines import Container
from cntr.errors import TargetNotFound
from cntr.linux import procfs
from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer, one_line_and_hint, run

SYS_CLONE3 = 435


class CloneArgs(ctypes.Structure):
    """struct clone_args of clone3(2), version 1."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal"),
            *("stack", "stack_size", "tls", "set_tid", "set_tid_size"),
        )
    ]


class Impostor:
    """A process with a chosen pid, as the kernel gives one by chance after some ten thousand forks."""

    def __init__(self, pid: int) -> None:
        wanted = (ctypes.c_int * 1)(pid)
        args = CloneArgs(exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        self.pid = syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args))
        if self.pid == 0:
            while True:
                signal.pause()
        if self.pid < 0:
            pytest.skip(f"clone3(2) with set_tid: {os.strerror(ctypes.get_errno())} (needs CAP_CHECKPOINT_RESTORE)")

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start_time(pid: int) -> int:
    return procfs.start_time(procfs.read(f"/proc/{pid}/stat"))


def runc_state(directory: object, name: str, pid: int, start: int) -> dict[str, str]:
    """A state file that runc left when its container's process died."""
    path = f"{directory}/{name}"
    os.makedirs(path)
    with open(f"{path}/state.json", "w") as stream:
        json.dump({"id": name, "init_process_pid": pid, "init_process_start": start}, stream)
    return {"CNTR_RUNC_ROOT": str(directory)}


@pytest.mark.parametrize("verb", ["attach", "exec", "inspect"])
def test_a_pid_that_belongs_to_another_process_now(tmp_path, verb):
    with BusyboxContainer() as container:
        pid, start = container.pid, start_time(container.pid)
        env = runc_state(tmp_path / "runc", "web", pid, start)
        assert run(verb, "runc:web", *([] if verb == "inspect" else ["--", "true"]), env=env).returncode == 0
    with Impostor(pid):
        assert start_time(pid) != start
        command = [] if verb == "inspect" else ["--", "true"]
        assert "web" in one_line_and_hint(run(verb, "runc:web", *command, env=env))
        assert "web" in one_line_and_hint(run(verb, "web", *command, env=env))


def test_a_stale_start_time_is_refused_by_the_target_itself():
    with BusyboxContainer() as container:
        Target(Container("x", "y", container.pid, start_time=start_time(container.pid))).close()
        with pytest.raises(TargetNotFound, match="belongs to another process now"):
            Target(Container("x", "y", container.pid, start_time=start_time(container.pid) - 1))


def test_a_target_never_comes_to_mean_another_process():
    """Opened, then dead, then its number used again: everything is refused or says that it is gone."""
    with BusyboxContainer() as container:
        pid = container.pid
        target = Target(Container("x", "y", pid))
    try:
        with Impostor(pid):
            assert not target.alive()
            with pytest.raises(ProcessLookupError):
                procfs.read("status", target.proc_fd)
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(target.pidfd, 0)
    finally:
        target.close()


SWAP = """
import os, sys
import cntr.attach.walk as attach
from tests.nest.test_same_process import Impostor
real, kept = attach.%(step)s, []
def swapped(*arguments, **more):
    result = real(*arguments, **more) if %(after)s else None
    if not kept:
        pid = int(os.environ["VICTIM"])
        os.kill(pid, 9)
        while os.path.exists(f"/proc/{pid}"):
            pass
        kept.append(Impostor(pid).__enter__())
    return result if %(after)s else real(*arguments, **more)
attach.%(step)s = swapped
from cntr.cli.main import run
try:
    sys.exit(run(sys.argv[1:]))
finally:
    kept[0].__exit__()
"""


ASK = "attach runc:web -- readlink /proc/self/ns/net".split()


@pytest.mark.parametrize(
    ("step", "after"),
    [("Target", False), ("Target", True), ("user_of", True), ("Identity", True), ("Monitor", True)],
)
def test_the_container_is_replaced_between_two_steps(tmp_path, step, after):
    """Whenever it dies while we look: never a session in the process that took its number, which here is the host's own."""
    with BusyboxContainer() as container:
        env = {
            **runc_state(tmp_path / "runc", "web", container.pid, start_time(container.pid)),
            "VICTIM": str(container.pid),
        }
        own = os.readlink("/proc/self/ns/net")
        done = subprocess.run(
            [sys.executable, "-c", SWAP % {"step": step, "after": after}, *ASK],
            env={**os.environ, **env, "PYTHONPATH": REPOSITORY},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode in (125, 137), done
        assert own not in done.stdout
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("cntr: runc:web: ") or done.stderr.startswith("cntr: runc:web stopped"), done


@pytest.mark.parametrize("flags", [[], ["--user", "1000"], ["--read-only"], ["--privileged"]])
def test_no_fd_but_the_three_standard_ones_reaches_the_command(tmp_path, flags):
    """Neither cntr's own nor one that its caller left open: a directory of the host would be a way out of the container."""
    with BusyboxContainer() as container, open(tmp_path / "x", "w") as extra:
        directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for fd in (extra.fileno(), directory):
                os.set_inheritable(fd, True)
            done = container.attach(*flags, "--", "ls", "/proc/self/fd", pass_fds=[extra.fileno(), directory])
            assert done.stdout.split() == ["0", "1", "2", "3"], "3 is the directory that ls reads"
        finally:
            os.close(directory)


def test_a_zombie_or_a_thread_is_no_target():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        one_line_and_hint(run("attach", str(child), "--", "true"))
    finally:
        os.waitpid(child, 0)
    script = "import threading as t, time; t.Thread(target=time.sleep, args=(9,), daemon=True).start(); print(1, flush=True); time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task") if int(name) != process.pid]
        done = run("attach", str(threads[0]), "--", "true")
        process.kill()
        process.stdout.close()
    one_line_and_hint(done)


def test_standard_streams_that_are_closed():
    """`cntr attach X -- true <&- >&-`: no fd of ours may take the place of a standard one."""
    with BusyboxContainer() as container:
        for closed in ("<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"):
            command = " ".join(
                [*CNTR, "attach", str(container.pid), "--", "sh", "-c", "'ls -l /proc/self/fd >/out$$; exit 7'", closed]
            )
            done = subprocess.run(
                ["sh", "-c", command.replace("/out$$", "/var/lib/cntr/out")],
                env={**os.environ, "PYTHONPATH": REPOSITORY},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 7, (closed, done)
            listed = (container.root / "out").read_text()
            for host in ("/proc ", "mnt:[", "pidfd", "/root", "anon_inode"):
                assert host not in listed, (closed, listed)
