"""How a session ends, leaving nothing: exit status, signals, the container's end, a kill of cntr."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from cntr.attach import remains
from testkit.container import SlimContainer
from testkit.waiting import wait_until
from tests.nest.busybox import REPOSITORY
from tests.nest.tty import CNTR


@dataclass
class Attached(SlimContainer):
    """A container, and the transport to attach by."""

    transport: str = "mount"


@pytest.fixture(params=["mount", "fuse"])
def container(request):
    """A container on each transport."""
    with Attached("life", transport=request.param) as running:
        yield running


def transport(container: SlimContainer) -> list[str]:
    return ["--transport", getattr(container, "transport", "mount")]


def attach(container: SlimContainer, *words: str, **options) -> subprocess.CompletedProcess:
    options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
    command = [*CNTR, "attach", *transport(container), str(container.pid), *words]
    return subprocess.run(command, capture_output=True, timeout=60, **options)


@pytest.fixture
def start():
    """Start sessions in the background; those that still run at the end are killed."""
    started: list[subprocess.Popen] = []

    def starter(container: SlimContainer | None, *words: str, **options) -> subprocess.Popen:
        options.setdefault("stdin", subprocess.DEVNULL)
        command = [*CNTR, "attach", *([*transport(container), str(container.pid)] if container else []), *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, **options))
        return started[-1]

    yield starter
    for process in started:
        process.kill()
        process.wait(10)
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("status", [0, 1, 3, 77, 255])
def test_the_exit_status_is_the_commands(container, status):
    assert attach(container, "--", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_killed_by_a_signal_is_128_plus_it(container, number):
    assert attach(container, "--", "sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number


def test_not_found_is_127_and_not_executable_126(container):
    missing = attach(container, "--", "no-such-program-at-all")
    assert missing.returncode == 127
    assert missing.stderr.startswith(b"cntr: ")
    assert attach(container, "--", "/etc/passwd").returncode == 126
    assert attach(container, "--", "/").returncode == 126


def test_pipes_are_binary_safe_and_counted(container):
    assert attach(container, "--", "sh", "-c", "cat | wc -c", input=b"a\nb").stdout.strip() == b"3"
    data = bytes(range(256)) * 4096
    assert attach(container, "--", "cat", input=data).stdout == data


def test_stderr_stays_stderr(container):
    done = attach(container, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sent_to_cntr_reaches_the_command(container, number, start):
    name = signal.Signals(number).name.removeprefix("SIG")
    script = f"trap 'echo got-{name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
    process = start(container, "--", "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == f"got-{name}\n".encode()
    assert process.returncode == 9


@pytest.mark.parametrize("step", ["_strip", "_reap"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_that_comes_before_the_command_reaches_it(container, number, step):
    """While the launcher works, and before the reaper has forked."""
    code = (
        f"import sys, time, cntr.attach.launcher as m\nreal = m.Launcher.{step}\n"
        "def slow(self):\n    time.sleep(0.5)\n    real(self)\n"
    )
    code += f"m.Launcher.{step} = slow\nfrom cntr.cli.main import run\nsys.exit(run(sys.argv[1:]))\n"
    proc_fd = os.open("/proc", os.O_RDONLY)
    words = [sys.executable, "-c", code, "attach", str(container.pid), "--", "sleep", "60"]
    process = subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": REPOSITORY}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: remains.descendants(proc_fd, process.pid)[1:], "the launcher")
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
        assert (process.returncode, said) == (128 + number, b"")
    finally:
        process.kill()
        process.wait()
        os.close(proc_fd)


def test_the_session_ends_with_the_container_and_says_so(container, start):
    process = start(container, "--", "sh", "-c", "echo ready; sleep 1000", stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    begun = time.monotonic()
    os.kill(container.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - begun < 5
    assert process.returncode == 137
    assert b"stopped: the session ended with it" in said


def test_the_session_ends_with_a_target_that_is_not_an_init(start):
    """The end of a process in the host's pid namespace kills nobody else, so cntr ends the session."""
    from cntr.linux import syscalls

    with SlimContainer("noinit", namespaces=syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS) as target:
        process = start(target, "--", "sh", "-c", "echo ready; sleep 1001.25 & sleep 1001.25", stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        session = descendants(process.pid)
        os.kill(target.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 137
        assert b"stopped" in said
        assert not any(alive(pid) for pid in session)


def test_cntr_killed_by_sigkill_leaves_no_process(container, start):
    process = start(container, "--", "sh", "-c", "setsid sleep 999.75 & (sleep 999.75 &) ; echo ready; sleep 999.75")
    assert process.stdout.readline() == b"ready\n"
    wait_until(lambda: len(descendants(process.pid)) >= 4)
    session = descendants(process.pid)
    process.kill()
    process.wait(10)
    wait_until(lambda: not any(alive(pid) for pid in session))


def test_the_monitor_killed_by_sigkill_ends_the_command(container, start):
    process = start(container, "--", "sh", "-c", "echo ready; exec sleep 998.75", stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    session = descendants(process.pid)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    monitor = next(int(pid) for pid in children if pathlib.Path(f"/proc/{pid}/comm").read_text() == "cntr-monitor\n")
    os.kill(monitor, signal.SIGKILL)
    process.communicate(timeout=20)
    assert process.returncode == 137
    wait_until(lambda: not any(alive(pid) for pid in session))


def test_what_the_command_leaves_behind_ends_with_it(container, start):
    process = start(container, "--", "sh", "-c", "setsid sleep 997.75 >/dev/null & sleep 0.1; echo gone")
    assert process.stdout.readline() == b"gone\n"
    process.wait(20)
    assert process.returncode == 0
    left = subprocess.run(["pgrep", "-f", "sleep 997.75"], capture_output=True, check=False)
    assert left.stdout == b""


def test_no_mount_namespace_outlives_the_session(container, start):
    process = start(container, "--", "sh", "-c", "readlink /proc/self/ns/mnt; echo ready; sleep 996.75")
    namespace = process.stdout.readline().strip().decode()
    assert process.stdout.readline() == b"ready\n"
    assert namespace in _mount_namespaces()
    process.kill()
    process.wait(10)
    wait_until(lambda: namespace not in _mount_namespaces())


def test_a_stopped_reader_does_not_lose_output(container, start):
    process = start(container, "--", "sh", "-c", "head -c 1000000 /dev/zero; echo end >&2", stderr=subprocess.PIPE)
    time.sleep(0.5)
    out, err = process.communicate(timeout=30)
    assert (len(out), err) == (1000000, b"end\n")


def test_a_closed_stdout_ends_a_writer_by_sigpipe(container, start):
    process = start(container, "--", "sh", "-c", "yes")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE


def test_nohup_stays_in_force(container, start):
    script = "echo ready; sleep 1; echo survived"
    process = start(
        container, "--", "sh", "-c", script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == b"survived\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_file_server_that_dies_or_hangs_ends_the_session_and_hangs_nobody(number, start):
    with Attached("served", transport="fuse") as container:
        busy = "echo ready; while :; do find /usr/share/doc; done >/dev/null 2>&1"
        process = start(container, "--", "sh", "-c", busy, stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        session = descendants(process.pid)
        server = next(pid for pid in session if pathlib.Path(f"/proc/{pid}/comm").read_text() == "cntrfs\n")
        os.kill(server, number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 125
        assert b"the file server" in said
        # The kernel kills the server's helper a moment after the server (PR_SET_PDEATHSIG).
        wait_until(lambda: not any(alive(pid) for pid in session), "the session to end", 2)


@pytest.mark.parametrize(
    "way", [["mount"], ["fuse", "--binding", "devfuse"], ["fuse", "--binding", "pyfuse3"]], ids=" ".join
)
def test_the_nests_mounts_outlast_changes_of_the_tools_tree(way, start, tmp_path):
    """When notified of a changed entry, the kernel drops it, with any mount on it."""
    if "pyfuse3" in way:
        pytest.importorskip("pyfuse3", reason="the pyfuse3 binding needs cntr-attach[pyfuse3]")
    (tmp_path / "var/lib/cntr").mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "usr", "proc", "dev", "sys", "etc"):
        (tmp_path / name).mkdir()
    for name in ("bin", "lib", "lib64", "usr"):
        subprocess.run(["mount", "--rbind", f"/{name}", tmp_path / name], check=True)
    try:
        with SlimContainer("outlast") as container:
            script = "ls /var/lib/cntr; echo; readlink /proc/self/ns/pid; read line; ls /var/lib/cntr; echo; readlink /proc/self/ns/pid"
            words = ["--tools", str(tmp_path), "--transport", *way, str(container.pid), "--", "/bin/sh", "-c", script]
            process = start(None, *words, stdin=subprocess.PIPE)
            before = [process.stdout.readline() for _ in range(6)]
            for number in range(20):
                for place in ("var/lib", "var", "."):
                    (tmp_path / place / f"new-{number}").mkdir()
                    (tmp_path / place / f"new-{number}").rmdir()
                for place in ("var/lib/cntr", "proc", "dev", "var"):
                    os.utime(tmp_path / place)
                    os.chmod(tmp_path / place, 0o755)
            time.sleep(1.5)  # longer than the kernel caches entries
            out, _ = process.communicate(b"go\n", timeout=30)
            assert before[0] == b"app\n"
            assert out.splitlines(keepends=True) == before
    finally:
        for name in ("bin", "lib", "lib64", "usr"):
            subprocess.run(["umount", "--recursive", "--lazy", tmp_path / name], check=True)


def test_many_sessions_at_once(container, start):
    running = [start(container, "--", "sh", "-c", f"sleep 0.3; exit {index}") for index in range(12)]
    assert [process.wait(60) for process in running] == list(range(12))


def _mount_namespaces() -> set[str]:
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/mnt"))
        except OSError:
            continue
    return found
