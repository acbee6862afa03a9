"""``cntr exec`` under the container's seccomp filters, and ``cntr attach --seccomp``."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from cntr.linux import procfs, syscalls, tracing
from cntr.linux import seccomp as calls
from testkit.container import DOCKER_DEFAULT
from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer, one_line_and_hint, run
from tests.nest.filters import KILL, answering, refusing

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a container takes root"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filters of this test are of x86_64's call numbers"),
]
SYS_ADMIN, PTRACE = 1 << 21, 1 << 19


def filtered(*filters: bytes, **properties: object) -> BusyboxContainer:
    """A container whose process has FILTERS, oldest first."""

    def as_root() -> None:
        for program in filters:
            calls.install(program)

    return BusyboxContainer(as_root=as_root, **properties)  # type: ignore[arg-type]


def status(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done
    return procfs.status(done.stdout)


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("no_new_privs", [False, True])
def test_exec_has_the_filters_of_the_container_and_nothing_more_than_it(uid, no_new_privs):
    with filtered(
        refusing(1, "symlink", "symlinkat"), refusing(22, "mkdir", "mkdirat"), uid=uid, no_new_privs=no_new_privs
    ) as container:
        own = status(container.exec("--", "/bin/cat", "/proc/self/status"))
        theirs = procfs.status(procfs.read(f"/proc/{container.pid}/status"))
        for field in (
            "Seccomp",
            "Seccomp_filters",
            "NoNewPrivs",
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "Uid",
        ):
            assert own[field] == theirs[field], field
        done = container.exec("--", "/bin/busybox", "mkdir", "/tmp-of-exec")
        assert "Invalid argument" in done.stderr, done
        done = container.exec("--", "/bin/busybox", "ln", "-s", "a", "/link-of-exec")
        assert "Operation not permitted" in done.stderr, done
        free = container.exec("--no-seccomp", "--", "/bin/cat", "/proc/self/status")
        assert status(free)["Seccomp"] == "0"


class Liar(BusyboxContainer):
    """A process with uid 1000 whose filter pretends success for calls that drop capabilities, change ids and close
    files.
    """

    def _drop(self) -> None:
        super()._drop()
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        calls.install(refusing(0, "capset", "prctl", "setresuid", "close_range", "keyctl", "unshare"))


def test_a_filter_of_the_containers_cannot_keep_privileges_or_fds_in_its_exec():
    """All of that is done before the filter is installed."""
    with Liar(uid=1000) as container:
        done = container.exec("--", "/bin/sh", "-c", "cat /proc/self/status; ls -l /proc/self/fd")
        own = status(done)
        assert (own["Uid"].split(), int(own["CapPrm"], 16), int(own["CapBnd"], 16)) == (["1000"] * 4, 0, DOCKER_DEFAULT)
        assert own["Seccomp_filters"] == "1"
        fds = {line.split()[-3] for line in done.stdout.splitlines() if " -> " in line}
        assert {"0", "1", "2"} <= fds <= {"0", "1", "2", "3"}, "the last one is ls's own"


def test_a_container_that_may_trace_never_sees_a_process_with_more():
    """Installing a filter needs CAP_SYS_ADMIN, or no_new_privs."""
    with filtered(refusing(22, "mkdir", "mkdirat"), capabilities=DOCKER_DEFAULT | PTRACE) as container:
        own = status(container.exec("--", "/bin/cat", "/proc/self/status"))
        assert (own["NoNewPrivs"], own["Seccomp"]) == ("1", "2")
    with filtered(refusing(22, "mkdir", "mkdirat"), capabilities=DOCKER_DEFAULT | PTRACE | SYS_ADMIN) as container:
        assert status(container.exec("--", "/bin/cat", "/proc/self/status"))["NoNewPrivs"] == "0"


def test_the_process_that_waits_for_the_command_does_not_hold_the_right_to_install():
    with filtered(refusing(22, "mkdir", "mkdirat")) as container:
        process = subprocess.Popen(
            [*CNTR, "exec", str(container.pid), "--", "/bin/sleep", "765.5"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
        )
        try:
            seen: dict[str, int] = {}
            deadline = time.monotonic() + 20
            while "sleep" not in seen:
                assert time.monotonic() < deadline
                seen = capabilities_in(container)
            assert all(not mask & SYS_ADMIN for mask in seen.values()), seen
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def capabilities_in(container: BusyboxContainer) -> dict[str, int]:
    """{name: permitted set} of the processes in the container's pid namespace."""
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{container.pid}/ns/pid"):
                fields = procfs.status(procfs.read(f"/proc/{pid}/status"))
                found[fields["Name"]] = int(fields["CapPrm"], 16)
        except OSError:
            continue
    return found


def test_a_filter_that_lets_nothing_run_is_said_or_ends_the_command_by_its_signal():
    with filtered(answering(KILL, "mkdir")) as container:
        assert container.exec("--", "/bin/busybox", "mkdir", "/x").returncode == 128 + signal.SIGSYS


def test_filters_that_cannot_be_had_are_an_error_with_a_way_out():
    with filtered(refusing(1, "mkdir")) as container:
        tracing.ptrace_seize(container.pid)
        try:
            message = one_line_and_hint(container.exec("--", "/bin/true"))
            assert "is traced by pid" in message
            assert container.exec("--no-seccomp", "--", "/bin/true").returncode == 0
        finally:
            tracing.ptrace_interrupt(container.pid)
            os.waitpid(container.pid, tracing.WALL)
            tracing.ptrace_detach(container.pid)


def test_from_under_a_filter_of_our_own_nothing_can_be_read():
    with filtered(refusing(1, "mkdir")) as container:
        done = subprocess.run(
            ["python3", "-c", "import sys, subprocess; from cntr.linux import seccomp; seccomp.install(bytes.fromhex(sys.argv[1])); "
             "sys.exit(subprocess.run(sys.argv[2:]).returncode)", refusing(1, "sethostname").hex(), "python3", "-m", "cntr", "exec",
             str(container.pid), "--", "/bin/true"],
            env={**os.environ, "PYTHONPATH": REPOSITORY}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "runs under a seccomp filter itself" in one_line_and_hint(done)


def test_a_session_has_them_when_asked():
    with filtered(refusing(22, "mkdir", "mkdirat")) as container:
        assert status(container.attach("--", "cat", "/proc/self/status"))["Seccomp_filters"] == "1", "the guard"
        assert status(container.attach("--seccomp", "--", "cat", "/proc/self/status"))["Seccomp_filters"] == "2"
        done = container.attach("--seccomp", "--", "mkdir", "/tmp/x")
        assert "Invalid argument" in done.stderr
        assert (
            status(container.attach("--seccomp", "--privileged", "--", "cat", "/proc/self/status"))["Seccomp_filters"]
            == "1"
        )


def test_calls_that_an_engine_answers_are_said_to_fail():
    with filtered(answering(0x7FC00000, "mkdir", "mkdirat")) as container:
        done = container.exec("--", "/bin/busybox", "mkdir", "/x")
        assert "seccomp user notification" in done.stderr
        assert "Function not implemented" in done.stderr


def test_inspect_says_what_is_taken_over():
    with filtered(refusing(1, "mkdir"), refusing(1, "symlink")) as container:
        told = run("inspect", str(container.pid)).stdout
        (row,) = [line for line in told.splitlines() if line.startswith("seccomp")]
        assert "2 filters" in row
        assert "exec" in row
        tracing.ptrace_seize(container.pid)
        told = run("inspect", str(container.pid)).stdout
        (row,) = [line for line in told.splitlines() if line.startswith("seccomp")]
        assert "is traced by pid" in row
        tracing.ptrace_interrupt(container.pid)
        os.waitpid(container.pid, tracing.WALL)
        tracing.ptrace_detach(container.pid)
