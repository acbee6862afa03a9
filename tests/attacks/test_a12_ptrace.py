"""A container that holds CAP_SYS_PTRACE can't be kept out of a session: what it finds there is worth nothing, or cntr refuses."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from cntr.attach.supervisor import Outcome
from cntr.linux import syscalls
from tests.attacks import kit, test_b1_exec
from tests.nest.box import REPOSITORY, one_line_and_hint, run

PTRACE, ALL = 0xA80425FB | 1 << 19, (1 << 41) - 1
CODE = "import sys; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def python(place: pathlib.Path) -> str:
    """A copy of the host's Python that only this test runs: a file that is being run can't be written."""
    copy = str(place / "python")
    shutil.copy(os.path.realpath(sys.executable), copy)
    return copy


def visit(python: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", CODE, *words],
        env={**os.environ, "PYTHONPATH": REPOSITORY, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("capabilities", [PTRACE, ALL])
def test_the_executable_is_held_and_written_to(accomplice, canary, place, transport, python, capabilities):
    """CVE-2019-5736 through a process of ours in the container's pid namespace: its /proc/PID/exe is the host's Python."""
    before = pathlib.Path(python).read_bytes()
    with kit.hostile(
        place, accomplice, "hunt", "x", canary.path, canary.secret, "same", "same", capabilities=capabilities
    ) as box:
        kit.await_ready(box)
        for words in (["attach", str(box.pid), "--transport", transport], ["exec", str(box.pid)]):
            for _ in range(3):
                visit(python, *words, "--", "sh", "-c", "sleep 0.1; true")
        kit.attach(box, transport, command=["true"])  # time for the accomplice to try again
        assert [line for line in box.loot if line.startswith("written")] == []
        assert pathlib.Path(python).read_bytes() == before


@pytest.mark.parametrize("capabilities", [PTRACE, ALL])
def test_what_is_found_is_worth_nothing(accomplice, canary, place, transport, capabilities):
    """Every door is open to it; behind them is the tools view. (With all capabilities the disks are its own: it looks at doors only.)"""
    with kit.hostile(
        place, accomplice, "hunt", "lt", canary.path, canary.secret, "same", capabilities=capabilities
    ) as box:
        kit.await_ready(box)
        for _ in range(3):
            kit.attach(box, transport, command=["sh", "-c", "sleep 0.15"], timeout=30)
        assert box.proofs(canary.secret) == []


@pytest.mark.parametrize("command", ["attach", "exec"])
def test_the_callers_variables_are_not_in_a_sessions_memory(accomplice, canary, place, transport, command):
    """Of whatever is seen there, the reaper too, which was forked from cntr: neither by /proc/PID/environ nor in its heap."""
    token = f"TOKEN-{canary.secret[:16]}"
    with kit.hostile(place, accomplice, "hunt", "mM", canary.path, token, "same", capabilities=PTRACE) as box:
        kit.await_ready(box)
        words = ["attach", str(box.pid), "--transport", transport] if command == "attach" else ["exec", str(box.pid)]
        for _ in range(2):
            done = run(*words, "--", "/bin/sh", "-c", "sleep 0.3", env={"AWS_SECRET_ACCESS_KEY": token}, timeout=30)
            assert done.returncode == 0, done
        assert [line for line in box.loot if line.startswith(("text", "memory holds"))] == []


@pytest.mark.parametrize("flags", [["--tools", "host:all"], ["--privileged"]])
def test_what_is_worth_something_takes_force(accomplice, canary, place, transport, flags):
    with kit.hostile(place, accomplice, capabilities=PTRACE) as box:
        done = kit.attach(box, transport, *flags)
        assert "CAP_SYS_PTRACE" in one_line_and_hint(done)
        assert "--force" in done.stderr
        assert kit.attach(box, transport, *flags, "--force").returncode == 0


def test_it_has_its_own_filter_in_the_session(accomplice, canary, place, transport):
    """Through a session without one it could make every system call."""
    rules = ((test_b1_exec.SYS_GETCPU, 77),)
    script = 'python3 -c "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(309, 0, 0, 0), ctypes.get_errno())"'
    with test_b1_exec.filtered(place, accomplice, rules, capabilities=PTRACE) as box:
        shown = kit.in_session(box, transport, script)
        assert shown.splitlines()[0] == "-1 77"
        assert "seccomp filters hold for the tools too" in shown
        assert kit.in_session(box, transport, script, "--force").splitlines()[0] == "0 0"


def test_it_gets_no_pipe_of_the_callers(accomplice, canary, place, transport):
    """Whoever reads one end of a pipe opens the other, and reads or types what another program of the caller's waits for."""
    script = "readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2"
    reading, writing = os.pipe()
    for capabilities, own in ((PTRACE, True), (PTRACE & ~(1 << 19), False)):
        root = place / str(own)
        root.mkdir()
        with kit.hostile(root, accomplice, capabilities=capabilities) as box:
            done = kit.attach(box, transport, command=["/bin/sh", "-c", script], input=None, stdin=reading)
        assert (os.readlink(f"/proc/self/fd/{reading}") not in done.stdout) == own, done
    os.close(reading)
    os.close(writing)


def test_a_worker_that_has_less_than_its_init(accomplice, canary, place, transport):
    """The process attached to has given CAP_SYS_PTRACE up for good; the one it was forked from has it."""

    def worker() -> None:
        if os.fork() == 0:
            for capability in range(41):
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            syscalls.capset(0, 0, 0)
            os.execv("/bin/sleep", ["sleep", "600"])

    with kit.hostile(place, accomplice, capabilities=PTRACE, as_root=worker) as box:
        (child,) = pathlib.Path(f"/proc/{box.pid}/task/{box.pid}/children").read_text().split()
        done = run("attach", child, "--transport", transport, "--privileged", "--", "true")
        assert "CAP_SYS_PTRACE" in one_line_and_hint(done)


def test_what_a_traced_process_reports_names_no_other_nest():
    """A process of a session's that is traced has the pipe to the supervisor, who ends what is in the nest, and prints what it is told."""
    outcome = Outcome()
    outcome.take(["nest", "4", "4026531841"])
    outcome.take(["nest", "4", "4026531832"])
    assert outcome.nest == (4, 4026531841)
    outcome.take(["left", "/tmp/\x1b]0;x\x07"])
    assert all(word.isprintable() for word in outcome.left)
    for words in (["nest"], ["exited"], ["killed"], [""], ["note"], ["failed"]):
        outcome.take(words)
