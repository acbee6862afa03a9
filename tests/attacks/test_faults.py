"""Faults: each process that holds a session together is killed or stopped; disks, files and memory run out; the terminal goes.

Afterwards there is nothing left of the session, no process waits uninterruptibly, and the user was told once.
"""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import subprocess
import time

import pytest

from cntr.linux import procfs
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.attacks.test_a8_monitor import launch, no_session_left, one_message
from tests.nest.busybox import CNTR, REPOSITORY, run
from tests.nest.tty import Terminal


def family(pid: int) -> dict[str, int]:
    """{name: pid} of a process and all its descendants."""
    found, todo = {}, [pid]
    while todo:
        at = todo.pop()
        try:
            name = pathlib.Path(f"/proc/{at}/comm").read_text().strip()
            todo += [int(child) for child in pathlib.Path(f"/proc/{at}/task/{at}/children").read_text().split()]
        except OSError:
            continue
        found[f"{name}{'' if at != pid else ' supervisor'}"] = at
    return found


def members(container: kit.Hostile, supervisor: int) -> dict[str, int]:
    """All processes of a session, those in the container's pid namespace too, whose parent the host sees as 0."""
    found = family(supervisor)
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in found.values() and int(name) != container.pid:
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == os.readlink(f"/proc/{container.pid}/ns/pid"):
                    found[f"inside {pathlib.Path(f'/proc/{name}/comm').read_text().strip()} {name}"] = int(name)
            except OSError:
                continue
    return found


def nobody_waits(pids: list[int]) -> None:
    """Assert that no process is in state D."""

    def waiting() -> list[int]:
        found = []
        for pid in pids:
            try:
                if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D":
                    found.append(pid)
            except OSError:
                continue
        return found

    wait_until(lambda: not waiting(), f"nobody to wait uninterruptibly: {waiting()}", 10)


def began(container: kit.Hostile, transport: str) -> subprocess.Popen[str]:
    """A session that runs: a shell with a child and a daemon, busy with files of the tools' tree."""
    process = launch(
        container,
        transport,
        "/bin/bash",
        "-c",
        "touch /var/lib/cntr/began; setsid sleep 600 & while :; do cat /etc/hostname /usr/bin/env >/dev/null; sleep 0.02; done",
    )
    wait_until(lambda: (container.root / "began").exists() or process.poll() is not None, "the session runs")
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("index", range(6))
def test_each_process_in_turn(accomplice, place, transport, number, index):
    """Whoever it is. A stopped one is let go on at the end by nobody: cntr is asked to end, and ends."""
    with kit.hostile(place, accomplice) as container:
        process = began(container, transport)
        everybody = members(container, process.pid)
        # Those end by themselves.
        names = sorted((name for name in everybody if " cat " not in name), key=everybody.get)
        if index >= len(names):
            process.terminate()
            process.communicate(timeout=20)
            pytest.skip(f"the session has {len(names)} processes")
        victim = everybody[names[index]]
        try:
            os.kill(victim, number)
        except ProcessLookupError:
            process.terminate()
            process.communicate(timeout=20)
            pytest.skip(f"{names[index]} had ended by itself")
        time.sleep(0.1)
        if victim != process.pid or number != signal.SIGSTOP:
            process.terminate()
        else:
            os.kill(victim, signal.SIGCONT)  # a stopped supervisor is its user's: `fg`
            process.terminate()
        try:
            _, error = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.kill(victim, signal.SIGCONT)
            process.kill()
            process.communicate(timeout=20)
            raise AssertionError(f"{names[index]} got {number!r}, and cntr does not end") from None
        one_message(error)
        no_session_left(container)
        nobody_waits(list(everybody.values()))


def test_the_container_is_killed(accomplice, place, transport):
    with kit.hostile(place, accomplice) as container:
        process = began(container, transport)
        everybody = list(members(container, process.pid).values())
        os.kill(container.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 137
        assert error.count("\n") == 1, error
        assert "stopped" in error
        nobody_waits(everybody)
        wait_until(
            lambda: not any(os.path.exists(f"/proc/{pid}/ns") and pid != process.pid for pid in everybody),
            "the session's processes to be gone",
        )


def test_the_container_is_stopped_and_killed(accomplice, place, transport):
    with kit.hostile(place, accomplice) as container:
        process = began(container, transport)
        for pid in members(container, process.pid).values():
            if pid != process.pid:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except ProcessLookupError:
                    continue
        os.kill(container.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=30)
        assert error.count("\n") <= 1, error
        no_leftover = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}") for pid in members_of(process)) and time.monotonic() < no_leftover:
            time.sleep(0.02)


def members_of(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid in family(process.pid).values() if pid != process.pid]


@pytest.mark.parametrize("transport", kit.TRANSPORTS)
def test_the_terminal_goes(accomplice, place, transport):
    with kit.hostile(place, accomplice) as container:
        terminal = Terminal(
            *CNTR, "attach", str(container.pid), "--transport", transport, "--", "/bin/bash", "--norc", env={"PS1": ""}
        )
        terminal.type("trap '' HUP; setsid sleep 600 & echo rea''dy\n")
        terminal.wait_for("ready")
        terminal.hang_up()
        assert terminal.process.wait(20) is not None
        no_session_left(container)


def executing(container: kit.Hostile) -> subprocess.Popen[str]:
    """The container's own shell by ``exec``, with a child."""
    process = subprocess.Popen(
        [*CNTR, "exec", str(container.pid), "--", "/bin/sh", "-c", "sleep 600 & touch /began; sleep 600"],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (container.root / "began").exists() or process.poll() is not None, "the program runs")
    return process


def alone(container: kit.Hostile, supervisor: int) -> None:
    """Assert that no process of cntr, or started by it, is left in the container or outside."""
    wait_until(lambda: not members(container, supervisor), f"nobody to be left: {members(container, supervisor)}", 10)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("index", range(5))
def test_each_process_of_an_exec(accomplice, place, number, index):
    """cntr, its monitor, the reaper, the program and its child."""
    with kit.hostile(place, accomplice) as container:
        process = executing(container)
        everybody = sorted(set(members(container, process.pid).values()))
        assert len(everybody) >= 5
        victim = everybody[index]
        name = pathlib.Path(f"/proc/{victim}/comm").read_text().strip()
        os.kill(victim, number)
        time.sleep(0.1)
        if victim == process.pid and number == signal.SIGSTOP:
            os.kill(victim, signal.SIGCONT)
        if process.poll() is None:
            process.terminate()
        _, error = process.communicate(timeout=20)
        one_message(error)
        if name != "cntr-reaper" or number == signal.SIGSTOP:  # what its program leaves is the container's own
            alone(container, process.pid)
        nobody_waits(everybody)


def test_an_exec_whose_container_is_killed(accomplice, place):
    with kit.hostile(place, accomplice) as container:
        process = executing(container)
        everybody = list(members(container, process.pid).values())
        os.kill(container.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 137
        assert error.count("\n") == 1, error
        nobody_waits(everybody)


def test_an_exec_whose_terminal_goes(accomplice, place):
    with kit.hostile(place, accomplice) as container:
        terminal = Terminal(*CNTR, "exec", str(container.pid), "--", "/bin/sh", env={"PS1": ""})
        terminal.type("trap '' HUP; sleep 600 & echo rea''dy\n")
        terminal.wait_for("ready")
        terminal.hang_up()
        assert terminal.process.wait(20) is not None
        alone(container, terminal.process.pid)


@pytest.mark.parametrize("kind", ["nofile", "fsize", "as", "stack", "nproc"])
def test_limits_of_the_caller(accomplice, place, transport, kind):
    """With little of a resource it works, or there is one message and a hint."""
    values = {
        "nofile": (16, 24, 40),
        "fsize": (0, 100),
        "as": (30 << 20, 60 << 20),
        "stack": (1 << 16,),
        "nproc": (1,),
    }[kind]
    with kit.hostile(place, accomplice) as container:
        for value in values:

            def limit(value: int = value) -> None:
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind.upper()}"), (value, value))

            done = kit.attach(container, transport, command=["true"], preexec_fn=limit, timeout=30)
            if done.returncode and done.stderr.startswith("cntr: "):
                most = (
                    4 if kind == "as" else 2
                )  # a file server without memory and the session that needs it both say so
                assert done.stderr.count("\n") <= most, done
            assert "Traceback" not in done.stderr or kind in ("as", "stack"), done


def test_signals_that_the_caller_ignores(accomplice, place, transport):
    """Ignored, SIGCHLD makes the kernel keep the status of each child to itself (waitpid(2)); it is inherited by exec."""
    ignoring = [
        "python3",
        "-c",
        "import os, signal, sys\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nos.execvp(sys.argv[1], sys.argv[1:])",
    ]
    with kit.hostile(place, accomplice) as container:
        for words in (["attach", str(container.pid), "--transport", transport], ["exec", str(container.pid)]):
            done = run(*words, "--", "sh", "-c", "true & wait; exit 7", prefix=ignoring)
            assert (done.returncode, done.stderr) == (7, ""), done
        assert run("inspect", str(container.pid), prefix=ignoring).returncode == 0


@pytest.mark.parametrize("what", ["base", "tmp"])
def test_a_full_disk(accomplice, place, transport, what):
    """Starting a session writes nothing, so a full /tmp or /var/lib does not matter."""
    where = "/tmp" if what == "tmp" else "/var/lib"
    script = f'mkdir -p {place}/small; mount -t tmpfs -o size=4k,mode=1777 x {place}/small; cp /dev/zero {place}/small/zero 2>/dev/null; mount --bind {place}/small {where}; exec "$@"'
    with kit.hostile(place, accomplice) as container:
        done = kit.attach(
            container,
            transport,
            command=["true"],
            prefix=["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"],
        )
        assert "Traceback" not in done.stderr
        if what == "base":
            assert done.returncode == 0, done


def test_a_session_that_fills_its_own_tmp(accomplice, place, transport):
    """It gets ENOSPC before the host gets short of memory."""
    with kit.hostile(place, accomplice) as container:
        before = procfs.read("/proc/meminfo")
        shown = kit.in_session(
            container,
            transport,
            "df -k --output=size /tmp | tail -1; dd if=/dev/zero of=/tmp/x bs=1M count=4 2>/dev/null; rm -f /tmp/x",
        )
        total = int(before.split("MemTotal:")[1].split()[0])
        assert int(shown.split()[0]) <= total


def test_out_of_memory(accomplice, place, transport, leaves_nothing):
    """The container's cgroup at its limit: the application must survive, the session ends with a word, or stayed outside."""
    top = next(
        (path for path in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if os.path.exists(f"{path}/cgroup.procs")), ""
    )
    group = pathlib.Path(top, f"cntr-{leaves_nothing}")
    limit = "memory.limit_in_bytes" if top.endswith("memory") else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(24 << 20))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no memory controller here: {error}")
    try:
        with kit.hostile(place, accomplice, cgroups=[str(group)]) as container:
            done = kit.attach(
                container,
                transport,
                command=["python3", "-c", "x = [bytearray(1 << 20) for _ in range(200)]"],
                timeout=60,
            )
            assert os.path.exists(f"/proc/{container.pid}/exe"), "the application must survive"
            assert done.returncode != 125 or done.stderr
            assert "Traceback (most recent call last)" not in done.stderr or "MemoryError" in done.stderr
            no_session_left(container)
            assert run("attach", str(container.pid), "--", "true").returncode == 0
    finally:
        wait_until(lambda: _removed(group), "the cgroup is empty")


@pytest.mark.parametrize("mebibytes", [6, 12, 20])
def test_cntr_itself_is_out_of_memory(accomplice, place, transport, leaves_nothing, mebibytes):
    """In a cgroup of the caller's, from too little to begin to too little for the file server: whoever the kernel kills, nothing is left."""
    top = next(
        (path for path in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if os.path.exists(f"{path}/cgroup.procs")), ""
    )
    group = pathlib.Path(top, f"cntr-{leaves_nothing}")
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if top.endswith("memory") else "memory.max")).write_text(str(mebibytes << 20))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no memory controller here: {error}")
    try:
        with kit.hostile(place, accomplice) as container:

            def join() -> None:
                (group / "cgroup.procs").write_text("0")

            words = ["sh", "-c", "cat /usr/bin/* >/dev/null 2>&1 & sleep 0.5"]
            done = kit.attach(container, transport, "--no-cgroup", command=words, timeout=60, preexec_fn=join)
            assert done.returncode in (0, 125, 137, -9), done
            no_session_left(container)
            assert run("attach", str(container.pid), "--", "true").returncode == 0
    finally:
        wait_until(lambda: _removed(group), "the cgroup is empty")


def _removed(group: pathlib.Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def test_many_at_once_leave_nothing(accomplice, place, transport):
    with kit.hostile(place, accomplice) as container:
        crowd = [launch(container, transport, "/bin/bash", "-c", "(setsid sleep 600 &); exit 3") for _ in range(12)]
        for process in crowd:
            _, error = process.communicate(timeout=60)
            assert process.returncode == 3, error
        no_session_left(container)
        assert pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split() == []
