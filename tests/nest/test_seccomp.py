"""The container's seccomp filters are read from its process completely, in order and unnoticed, or there is an error."""

from __future__ import annotations

import ctypes
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from cntr.attach import seccomp
from cntr.errors import CntrError
from cntr.linux import procfs, syscalls, tracing
from cntr.linux import seccomp as calls
from testkit.waiting import wait_until
from tests.nest.filters import answering, instruction, refusing

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: reading another process's filters"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filters of this test are of x86_64's call numbers"),
]
PATIENCE = 10


class Sleeper:
    """A process with FILTERS that runs ``body``, or waits; it reports by a pipe that they are installed."""

    def __init__(self, *filters: bytes, body=signal.pause, flags: int = 0) -> None:
        self.filters, self.body, self.flags, self.pid = filters, body, flags, 0

    def __enter__(self) -> Sleeper:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                os.close(reading)
                for program in self.filters:
                    calls.install(program, self.flags)
                os.write(writing, b"x")
                os.close(writing)
                while True:
                    self.body()
            finally:
                os._exit(1)
        os.close(writing)
        assert os.read(reading, 1) == b"x"
        os.close(reading)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def status(self) -> dict[str, str]:
        return procfs.status(procfs.read(f"/proc/{self.pid}/status"))

    def wait_for_state(self, letter: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.status()["State"][0] != letter:
            assert time.monotonic() < deadline, self.status()["State"]
            time.sleep(0.005)


def long_filter(instructions: int) -> bytes:
    """A filter of that length: loads, and at the end the permission."""
    return instruction(0x20, 0) * (instructions - 1) + instruction(0x06, 0x7FFF0000)


def test_a_process_without_a_filter_has_none():
    with Sleeper() as sleeper:
        assert seccomp.filters_of(sleeper.pid, "it") == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_all_filters_are_read_whole_and_oldest_first(count):
    filters = [refusing(number, "sethostname") + long_filter(100 * number) for number in range(1, count + 1)]
    with Sleeper(*filters) as sleeper:
        assert [found.program for found in seccomp.filters_of(sleeper.pid, "it")] == filters
        assert sleeper.status()["TracerPid"] == "0"


def test_a_filter_of_the_kernels_greatest_length_is_read():
    program = long_filter(4096)
    with Sleeper(program, flags=calls.SECCOMP_FILTER_FLAG_LOG) as sleeper:
        (found,) = seccomp.filters_of(sleeper.pid, "it")
        assert (found.program, found.flags) == (program, calls.SECCOMP_FILTER_FLAG_LOG)


def test_what_was_read_is_what_the_process_that_installs_it_is_held_to():
    with Sleeper(refusing(1, "sethostname"), refusing(13, "mkdir"), refusing(30, "mkdir", "symlink")) as sleeper:
        found = seccomp.filters_of(sleeper.pid, "it")
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            for one in found:
                calls.install(one.program, one.flags)
            for call, arguments in ((170, (b"x", 1)), (83, (b"/x", 0)), (88, (b"a", b"b")), (39, ())):
                result = ctypes.CDLL(None, use_errno=True).syscall(call, *arguments)
                os.write(writing, b"%d " % (0 if result > 0 else ctypes.get_errno()))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    # if two filters have equal actions, the newest counts
    assert os.read(reading, 100) == b"1 30 30 0 "
    os.close(reading)


def epoll_until_told(errors: int):
    """A wait that writes a byte to fd ERRORS whenever it is interrupted; Python's own would silently restart."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = select.epoll().fileno()
    events = ctypes.create_string_buffer(12 * 4)

    def wait() -> None:
        if libc.epoll_wait(os.dup(fd), events, 4, -1) < 0:
            os.write(errors, b"i")

    poller = select.epoll()
    fd = poller.fileno()
    wait.poller = poller  # type: ignore[attr-defined]
    return wait


def test_the_process_does_not_notice():
    """Under strace -p, epoll_wait(2) would fail with EINTR (signal(7))."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with Sleeper(refusing(1, "sethostname"), body=epoll_until_told(writing)) as sleeper:
        sleeper.wait_for_state("S")
        for _ in range(20):
            assert len(seccomp.filters_of(sleeper.pid, "it")) == 1
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        sleeper.wait_for_state("S")  # after the last stop it needs a processor to return to its system call
        tracing.ptrace_seize(sleeper.pid)  # the check can fail: a plain stop interrupts it
        tracing.ptrace_interrupt(sleeper.pid)
        os.waitpid(sleeper.pid, tracing.WALL)
        tracing.ptrace_detach(sleeper.pid)
        os.set_blocking(reading, True)
        assert os.read(reading, 1) == b"i"
    os.close(reading)
    os.close(writing)


def test_a_stopped_process_stays_stopped_and_a_running_one_runs():
    with Sleeper(refusing(1, "mkdir")) as sleeper:
        os.kill(sleeper.pid, signal.SIGSTOP)
        sleeper.wait_for_state("T")
        assert len(seccomp.filters_of(sleeper.pid, "it")) == 1
        sleeper.wait_for_state("T")
        os.kill(sleeper.pid, signal.SIGCONT)
        sleeper.wait_for_state("S")
        assert len(seccomp.filters_of(sleeper.pid, "it")) == 1
        sleeper.wait_for_state("S")


def test_a_traced_process_is_refused_with_its_tracers_name():
    with Sleeper(refusing(1, "mkdir")) as sleeper:
        tracing.ptrace_seize(sleeper.pid)
        with pytest.raises(CntrError, match=rf"traced by pid {os.getpid()} \(") as caught:
            seccomp.filters_of(sleeper.pid, "web")
        assert "--no-seccomp" in caught.value.hint
        tracing.ptrace_interrupt(sleeper.pid)
        os.waitpid(sleeper.pid, tracing.WALL)
        tracing.ptrace_detach(sleeper.pid)


def test_many_who_read_at_once_take_turns():
    """Such as `xargs -P` with `cntr exec`, or several people in one container."""
    program = refusing(1, "mkdir")
    with Sleeper(program) as sleeper:
        readers = []
        for _ in range(8):
            if (reader := os.fork()) == 0:
                status = 1
                try:
                    found = [seccomp.filters_of(sleeper.pid, "it") for _ in range(10)]
                    status = int(any([one.program for one in filters] != [program] for filters in found))
                finally:
                    os._exit(status)
            readers.append(reader)
        assert [os.waitpid(reader, 0)[1] for reader in readers] == [0] * len(readers)
        assert sleeper.status()["TracerPid"] == "0"


def test_a_thread_that_is_traced_leaves_the_others_to_be_asked():
    """`strace -p 1` without -f traces one of several threads."""
    program = refusing(1, "mkdir")

    def body() -> None:
        threading.Thread(target=signal.pause, daemon=True).start()
        signal.pause()

    with Sleeper(program, body=body) as sleeper:
        wait_until(lambda: len(os.listdir(f"/proc/{sleeper.pid}/task")) > 1, "the second thread")
        tracing.ptrace_seize(sleeper.pid)
        try:
            assert [found.program for found in seccomp.filters_of(sleeper.pid, "it")] == [program]
        finally:
            tracing.ptrace_interrupt(sleeper.pid)
            os.waitpid(sleeper.pid, tracing.WALL)
            tracing.ptrace_detach(sleeper.pid)


def test_a_leader_that_is_a_zombie_leaves_its_threads_to_be_asked():
    def body() -> None:
        threading.Thread(target=signal.pause).start()
        ctypes.CDLL(None).syscall(60, 0)  # exit(2) only this thread

    with Sleeper(refusing(1, "mkdir"), body=body) as sleeper:
        sleeper.wait_for_state("Z")
        assert len(seccomp.filters_of(sleeper.pid, "it")) == 1


def test_a_process_that_has_ended_is_said_to_have_ended():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        seccomp.filters_of(pid, "it")
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        seccomp.filters_of(pid, "it")


def test_a_process_that_cannot_stop_is_left_alone_after_a_while(monkeypatch):
    """Its only thread waits for a vfork(2) child, which a tracer can't interrupt."""
    monkeypatch.setattr(seccomp, "PATIENCE_SECONDS", 0.6)
    monkeypatch.setattr(seccomp, "THREAD_SECONDS", 0.2)
    program = (
        "import ctypes; ctypes.CDLL(None).syscall(56, 0x4000 | 0x100 | 17, 0, 0, 0, 0) or ctypes.CDLL(None).pause()"
    )

    def body() -> None:
        os.execv(sys.executable, [sys.executable, "-c", program])

    with Sleeper(refusing(1, "mkdir"), body=body) as sleeper:
        sleeper.wait_for_state("D")
        with pytest.raises(CntrError, match="did not stop within"):
            seccomp.filters_of(sleeper.pid, "it")
        assert sleeper.status()["TracerPid"] == "0"
        (child,) = procfs.read(f"/proc/{sleeper.pid}/task/{sleeper.pid}/children").split()
        os.kill(int(child), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while sleeper.status()["State"][0] == "D":
            assert time.monotonic() < deadline


@pytest.fixture
def throttled():
    """A cgroup of the cpu controller whose members run for a thousandth of each second."""
    place = pathlib.Path("/sys/fs/cgroup/cpu", f"cntr-test-{os.getpid()}")
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no cpu controller of cgroup version 1 to write to: {error}")
    try:
        (place / "cpu.cfs_period_us").write_text("1000000")
        (place / "cpu.cfs_quota_us").write_text("1000")
        yield place
    finally:
        wait_until(lambda: not (place / "cgroup.procs").read_text(), "the cgroup is empty")
        place.rmdir()


def test_a_process_that_gets_no_processor_for_a_while_is_waited_for(throttled, monkeypatch):
    """As in a container with a small cpu quota, or on an overloaded machine."""
    monkeypatch.setattr(seccomp, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(seccomp, "THREAD_SECONDS", 0.02)
    with Sleeper(refusing(1, "mkdir"), body=lambda: None) as sleeper:
        (throttled / "cgroup.procs").write_text(str(sleeper.pid))
        for _ in range(3):
            time.sleep(0.1)
            assert len(seccomp.filters_of(sleeper.pid, "it")) == 1
        pathlib.Path("/sys/fs/cgroup/cpu/cgroup.procs").write_text(str(sleeper.pid))


def test_strict_mode_is_refused():
    def body() -> None:
        libc = ctypes.CDLL(None)
        buffer = ctypes.create_string_buffer(1)
        reading, _ = os.pipe()
        libc.prctl(22, 1)  # PR_SET_SECCOMP, SECCOMP_MODE_STRICT
        libc.read(reading, buffer, 1)

    with Sleeper(body=body) as sleeper:
        deadline = time.monotonic() + PATIENCE
        while sleeper.status()["Seccomp"] != "1":
            assert time.monotonic() < deadline
        with pytest.raises(CntrError, match="strict mode"):
            seccomp.filters_of(sleeper.pid, "it")


PROBE = "from cntr.attach import seccomp; import sys; print(len(seccomp.filters_of(int(sys.argv[1]), 'web')))"


@pytest.mark.parametrize(("how", "said"), [("filter", "runs under a seccomp filter itself"), ("drop", "CAP_SYS_ADMIN")])
def test_who_may_not_read_filters_is_told_why(how, said):
    def before() -> None:
        if how == "filter":
            calls.install(refusing(1, "sethostname"))
        else:
            held = syscalls.permitted_capabilities() & ~(1 << 21)
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, 21)
            syscalls.capset(held, held, 0)

    with Sleeper(refusing(1, "mkdir")) as sleeper:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(sleeper.pid)],
            preexec_fn=before,
            capture_output=True,
            text=True,
            check=False,
        )
        assert said in done.stderr, done
        assert "CntrError: web: its seccomp filter cannot be taken over" in done.stderr


def test_a_filter_that_asks_a_listener_is_known():
    assert seccomp.Filter(answering(0x7FC00000, "mkdir")).asks_a_listener()
    assert not seccomp.Filter(refusing(1, "mkdir")).asks_a_listener()


def test_a_reader_that_dies_lets_go():
    """Such as by kill -9 of all our processes meanwhile."""
    with Sleeper(refusing(1, "mkdir")) as sleeper:
        if (pid := os.fork()) == 0:
            try:
                tracing.ptrace_seize(sleeper.pid)
                tracing.ptrace_interrupt(sleeper.pid)
                os.waitpid(sleeper.pid, tracing.WALL)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        sleeper.wait_for_state("S")
        assert sleeper.status()["TracerPid"] == "0"
        assert pathlib.Path(f"/proc/{sleeper.pid}/wchan").exists()
