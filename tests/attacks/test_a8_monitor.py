"""A8: the processes of a session. None may be reached, seen with the host's rights, or outlive the session.

The container stops, kills, aborts and traces every process that it sees and did not start. A session may end by that, of course: with one
message, at once, and with nothing left that still stands in the tools' tree.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from cntr.linux import procfs
from testkit import processes
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.conftest import MARK, marked_processes
from tests.nest.busybox import CNTR, REPOSITORY, run

DOCKER_DEFAULT = 0xA80425FB
GUARD = 1 << 19  # CAP_SYS_PTRACE, which sessions hold besides


def launch(container: kit.Hostile, transport: str, *command: str, flags: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CNTR, "attach", str(container.pid), "--transport", transport, *flags, "--", *command],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def no_session_left(container: kit.Hostile) -> None:
    """Assert that every process left is in the container's own mount namespace."""
    own = os.stat(f"/proc/{container.pid}/ns/mnt").st_ino
    here = os.stat("/proc/self/ns/mnt").st_ino

    def strangers() -> list[str]:
        found = []
        for process in marked_processes(os.environ[MARK]):
            pid = process.split()[0]
            try:
                if os.stat(f"/proc/{pid}/ns/mnt").st_ino not in (own, here):
                    found.append(process)
            except OSError:
                continue
        return found

    wait_until(lambda: not strangers(), f"the session's processes are gone: {strangers()}", 10)


def one_message(error: str) -> None:
    assert "Traceback" not in error, error
    assert len([line for line in error.splitlines() if line.startswith("cntr: ") and "warning: " not in line]) <= 1, (
        error
    )


@pytest.mark.parametrize("deed", ["s", "k", "T", "a"])
@pytest.mark.parametrize("uid", [0, 1000])
def test_everything_visible_is_stopped_or_killed(accomplice, canary, place, transport, deed, uid):
    """Sessions with children and grandchildren in sessions of their own, and a SIGTERM at cntr where they hang."""
    with kit.hostile(place, accomplice, "hunt", deed, canary.path, canary.secret, "same", uid=uid) as container:
        kit.await_ready(container)
        process = launch(
            container, transport, "/bin/bash", "-c", "setsid sleep 600 & (sleep 600 & sleep 600); sleep 600"
        )
        try:
            wait_until(lambda: container.loot or process.poll() is not None, "the accomplice to meet it")
            time.sleep(0.3)  # let it act on later processes
            if process.poll() is None and deed == "s":
                process.kill()  # a stopped command hears nothing, and its user has to do without cntr
            elif process.poll() is None:
                process.terminate()
            _, error = process.communicate(timeout=15)
        finally:
            process.kill()
        one_message(error)
        no_session_left(container)
        assert container.proofs(canary.secret) == []


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_supervisor_is_killed_while_the_container_stops_the_rest(accomplice, canary, place, transport, uid):
    with kit.hostile(place, accomplice, "hunt", "s", canary.path, canary.secret, "same", uid=uid) as container:
        kit.await_ready(container)
        process = launch(container, transport, "/bin/bash", "-c", "setsid sleep 600 & sleep 600")
        wait_until(lambda: container.loot, "the accomplice to stop it")
        process.kill()
        process.communicate(timeout=10)
        no_session_left(container)


@pytest.mark.parametrize("user", ["", "33"])
@pytest.mark.parametrize("uid", [0, 1000])
def test_nobody_with_the_hosts_rights_is_seen(accomplice, canary, place, transport, uid, user):
    """Every process that the container sees, at every moment, has the session's ids and no capability beyond it."""
    allowed = DOCKER_DEFAULT | GUARD
    with kit.hostile(place, accomplice, "hunt", "i", canary.path, canary.secret, "same", "same", uid=uid) as container:
        kit.await_ready(container)
        for _ in range(4):
            done = kit.attach(
                container, transport, *(["--user", user] if user else []), command=["sh", "-c", "sleep 0.05; true"]
            )
            assert done.returncode == 0, done
        seen = [
            re.match(r"ids (\d+) \S+ +Uid:\t?([\d\t ]+?) +CapPrm:\t?([0-9a-f]+) +CapEff", line)
            for line in container.loot
            if line.startswith("ids")
        ]
        assert len(seen) >= 2, container.loot
        expected = int(user or uid)
        for match in seen:
            assert match
            pid, ids, permitted = match.groups()
            assert int(permitted, 16) & ~allowed == 0, f"pid {pid} holds {permitted}: {container.loot}"
            assert set(ids.split()) == {str(expected)}, f"pid {pid} is {ids}: {container.loot}"


def test_nobody_with_the_hosts_rights_is_seen_from_a_user_namespace(accomplice, canary, place, transport):
    with kit.remapped(place, accomplice, "hunt", "i", canary.path, canary.secret, "same", "same") as container:
        kit.await_ready(container)
        for _ in range(4):
            done = kit.attach(container, transport, command=["sh", "-c", "sleep 0.05; true"])
            assert done.returncode == 0, done
        foreign = [line for line in container.loot if "65534" in line]
        assert foreign == [], "a process has a uid that is not mapped in the container"
        assert any(line.startswith("ids") for line in container.loot)


@pytest.mark.parametrize("roles", [("same",), ("1000", "1000+")])
@pytest.mark.parametrize("user", ["0", "1000"])
def test_everything_visible_is_traced(accomplice, canary, place, transport, roles, user):
    """By processes of the same uid too; what is traced opens files for the tracer."""
    with kit.hostile(place, accomplice, "hunt", "tl", canary.path, canary.secret, *roles) as container:
        kit.await_ready(container)
        for _ in range(3):
            kit.attach(container, transport, "--user", user, command=["sh", "-c", "sleep 0.1"], timeout=20)
        assert container.proofs(canary.secret) == []
        canary.untouched()


def test_a_session_traces_no_process_that_holds_it(accomplice, canary, place, transport):
    """A tool run as uid 1000 in the session (an untrusted script under strace) finds no process of the host's rights beside it."""
    with kit.hostile(place, accomplice) as container:
        script = (
            "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || { cat $p/environ $p/mem $p/root"
            + canary.path
            + " 2>/dev/null; "
            "readlink $p/exe; grep -H CapPrm $p/status; }; done; "
            "python3 -c \"import ctypes,os; l=ctypes.CDLL(None); print([l.ptrace(0x4206,int(p),0,0) for p in os.listdir('/proc') if p.isdecimal() and int(p) != os.getpid()])\""
        )
        shown = kit.in_session(container, transport, script, "--user", "1000")
        assert canary.secret not in shown
        assert not re.search(r"CapPrm:\s+0000[0-9a-f]{2}ff", shown), shown


def test_an_out_of_memory_container_ends_the_session_first(accomplice, canary, place):
    """The oom killer of the container's cgroup takes the session before the application: oom_score_adj 1000, or outside the cgroup."""
    with kit.hostile(place, accomplice) as container:
        score = int(kit.in_session(container, "mount", "cat /proc/self/oom_score_adj"))
        assert score >= int(pathlib.Path(f"/proc/{container.pid}/oom_score_adj").read_text())


def test_orphans_of_a_session_end_with_it(accomplice, canary, place, transport):
    """Daemons of any kind: double forks, sessions of their own, a stopped one, one in a namespace of its own, one that ignores all signals."""
    with kit.hostile(place, accomplice, capabilities=DOCKER_DEFAULT | 1 << 21) as container:
        script = (
            "(setsid sleep 601 &) ; setsid bash -c 'trap \"\" HUP TERM INT; sleep 602; sleep 602' & "
            "(sleep 603 & kill -STOP $!); unshare -m sleep 604 & unshare -p -f sleep 605 & unshare -n sleep 606 & "
            'nohup sleep 607 & python3 -c \'import os\nif os.fork()==0:\n os.setsid()\n if os.fork()==0: os.execvp("sleep",["sleep","608"])\' ; '
            "sleep 0.3; true"
        )
        done = kit.attach(container, transport, command=["/bin/bash", "-c", script])
        assert done.returncode == 0, done
        no_session_left(container)
        own = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        assert own == [], "the application has no new children, not even zombies"


def test_the_session_continues_beside_a_stopped_application(accomplice, canary, place, transport):
    """pid 1 stopped: the session's processes must not wait for it."""
    with kit.hostile(place, accomplice) as container:
        os.kill(container.pid, signal.SIGSTOP)
        assert kit.in_session(container, transport, "(sleep 0.05 &); echo here", timeout=15) == "here\n"
        assert run("exec", str(container.pid), "--", "true", timeout=15).returncode == 0
        os.kill(container.pid, signal.SIGCONT)


ELSEWHERE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
for how in ("unshare", "setns"):
    if os.fork() == 0:
        os.setsid()
        if how == "unshare": failed = libc.unshare(0x20000)
        else: failed = libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0x20000)
        os.execvp("/bin/busybox" if how == "setns" else "sleep", ["sleep", f"98765{failed}"])
open("/var/lib/cntr/begun", "w")
os.wait()
"""


def test_orphans_in_another_mount_namespace_end_when_the_reaper_is_killed(accomplice, canary, place, transport):
    """With CAP_SYS_ADMIN a process of a session goes where the monitor doesn't look, and its parent is gone by the container's hand."""
    with kit.hostile(place, accomplice, capabilities=(1 << 41) - 1) as container:
        other = launch(container, transport, "sleep", "987651")
        process = launch(container, transport, "python3", "-c", ELSEWHERE)
        wait_until(lambda: len(processes.running("sleep", "987650")) == 2, "both are there", 20)
        reapers = [pid for pid in pids_named("cntr-reaper") if monitor_of(pid, process.pid)]
        assert len(reapers) == 1
        os.kill(reapers[0], signal.SIGKILL)
        assert process.wait(20) == 137
        one_message(process.communicate()[1])
        wait_until(lambda: not processes.running("sleep", "987650"), "nothing of it to be left", 10)
        assert processes.running("sleep", "987651"), "another session in the same container carries on"
        other.terminate()
        other.communicate()


def pids_named(name: str) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == f"{name}\n":
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def monitor_of(pid: int, supervisor: int) -> bool:
    """Whether the monitor of a reaper is SUPERVISOR's."""
    try:
        parent = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
        return procfs.parent_pid(procfs.read(f"/proc/{parent}/stat")) == supervisor
    except (OSError, ValueError):
        return False
