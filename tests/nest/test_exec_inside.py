"""``cntr exec`` inside a session: the container's program in its own root, with no way to the tools' tree."""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess

import pytest

from testkit.processes import running
from testkit.waiting import wait_until
from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer, ask, session
from tests.nest.conftest import prowler  # noqa: F401
from tests.nest.test_hostile import Loot, ground
from tests.nest.tty import Terminal

INSIDE = f"PYTHONPATH={REPOSITORY} {shlex.join(CNTR)} exec"


def inside(
    container: BusyboxContainer, arguments: str, *flags: str, **options: object
) -> subprocess.CompletedProcess[str]:
    """``cntr exec ARGUMENTS`` typed in a session."""
    return container.attach(*flags, "--", "sh", "-c", f"{INSIDE} {arguments}", **options)


def test_it_is_the_containers_own_root_and_environment():
    with BusyboxContainer(files={"/etc/hostname": "slim-name\n"}) as container:
        done = inside(container, "-- sh -c 'ls /; cat /etc/hostname; echo $PATH $APP_MODE; readlink /proc/self/exe'")
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == "app\nbin\ndev\netc\nproc\nsys\nslim-name\n/bin production\n/bin/busybox\n"
        theirs = os.readlink(f"/proc/{container.pid}/ns/mnt")
        assert inside(container, "-- readlink /proc/self/ns/mnt").stdout.strip() == theirs, (
            "its own mount namespace, not the nest"
        )


def test_streams_status_directory_and_variables_pass():
    with BusyboxContainer(files={"/srv/x": ""}) as container:
        done = inside(
            container,
            "-w /srv -e A=1 -e B -- sh -c 'cat; pwd; echo $A $B; echo err >&2; exit 9'",
            "-e",
            "B=2",
            input="in\n",
        )
        assert (done.returncode, done.stdout, done.stderr) == (9, "in\n/srv\n1 2\n", "err\n")
        done = inside(container, "-- sh -c 'kill -9 $$'")
        assert done.returncode == 137
        done = inside(container, "-- no-such-program")
        assert done.returncode == 127
        assert done.stderr.count("\n") == 2


@pytest.mark.usefixtures("other_users")
@pytest.mark.parametrize(("flags", "uid"), [((), "0"), (("--user", "1000"), "1000")])
def test_it_is_who_the_session_is_without_the_added_capability(flags, uid):
    with BusyboxContainer() as container:
        out = inside(container, "-- sh -c 'id -u; grep CapBnd /proc/self/status'", *flags).stdout.split()
        assert out[0] == uid
        assert int(out[2], 16) & 1 << 19 == 0, "CAP_SYS_PTRACE is for the session's own processes"


def test_the_program_finds_no_way_to_the_tools(tmp_path):
    """In a plain chroot each of these would lead to the host's tree."""
    with BusyboxContainer() as container:
        script = "cd /../../..; ls /proc/[0-9]*/root/ /proc/[0-9]*/cwd/ 2>/dev/null; ls .."
        out = inside(container, f"-- sh -c '{script}'").stdout
        assert "usr" not in out.split()
        assert "app" in out.split()


def test_another_process_of_the_container_gets_nothing_of_the_host(tmp_path, prowler):  # noqa: F811
    root = tmp_path / "root"
    root.mkdir()
    loot: Loot = ground(root)
    with BusyboxContainer(
        root=root, argv=["/prowl", "/loot", "same", "1000", "1000+"], programs={"/prowl": prowler}
    ) as container:
        for _ in range(3):
            assert inside(container, "-- sh -c 'sleep 0.3'").returncode == 0
        assert loot.seen() > 100
        assert [line for line in loot.raw() if line.split()[1] in ("root", "cwd")] == []


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_nobody_but_the_session_can_come_to_it(transport):
    """No socket in the container's network namespace, and none reachable by a path of the container's or the host's."""
    with BusyboxContainer() as container, session(str(container.pid), "--transport", transport) as shell:
        before = {path for path in pathlib.Path("/proc/net/unix").read_text().split() if path.startswith("@cntr")}
        assert ask(shell, f"{INSIDE} -- touch /done; echo $?") == "0"
        assert (container.root / "done").exists()
        assert "cntr" not in pathlib.Path(f"/proc/{container.pid}/net/unix").read_text()
        assert not before
        assert ask(shell, "test -S /run/cntr/exec.sock && echo here") == "here"
        assert not pathlib.Path(f"/proc/{container.pid}/root/run/cntr").exists()
        assert not pathlib.Path("/run/cntr/exec.sock").exists()


def test_a_process_of_the_container_in_the_sockets_place_is_refused():
    """The session's own root could put another socket there: the streams of a client are given to no process of the container."""
    with BusyboxContainer() as container, session(str(container.pid)) as shell:
        script = (
            "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); os.unlink('/run/cntr/exec.sock'); "
            "s.bind('/run/cntr/exec.sock'); s.listen(); print('up', flush=True); c = s.accept()[0]; print(c.recv(9), flush=True)"
        )
        ask(shell, f'python3 -c "{script}" > /tmp/said & while ! test -s /tmp/said; do sleep 0.05; done; echo up')
        told = ask(shell, f"{INSIDE} -- touch /done 2>&1 | head -1")
        assert "another process answers" in told
        assert ask(shell, "wait; tail -1 /tmp/said") == "b''"
        assert not (container.root / "done").exists()


def test_a_terminal_of_its_own_for_a_hostile_shell():
    """The container's shell must not type into the session's terminal (TIOCSTI): it has another pty, with job control."""
    with (
        BusyboxContainer() as container,
        Terminal(*CNTR, "attach", str(container.pid), "--", "/bin/bash", "--norc") as terminal,
    ):
        terminal.type("PS1='(s)# '\n")
        terminal.wait_for(r"\(s\)# '\r?\n")
        terminal.wait_for(r"\(s\)# ")
        terminal.type(f"{INSIDE} -- sh -c 'test -t 0 && (: </dev/tty) && echo own-$((1+1)); stty size; exec sh'\n")
        terminal.wait_for("own-2")
        terminal.wait_for("24 80")
        seconds = f"50.{os.getpid()}"
        terminal.type(f"sleep {seconds}\n")
        wait_until(lambda: running("sleep", seconds), "the command runs")
        terminal.type("\x03")
        terminal.type("echo after-$((2+3)); readlink /proc/self/exe\n")
        terminal.wait_for("after-5")
        terminal.wait_for("/bin/busybox")
        terminal.type("exit 4\n")
        terminal.wait_for(r"\(s\)# ")
        terminal.type("echo status-$?; stty -a | grep -o ' icanon'\n")
        terminal.wait_for("status-4")
        terminal.wait_for(" icanon")
        terminal.type("exit\n")
        terminal.process.wait(10)


def test_it_ends_with_its_client_and_with_the_session():
    with BusyboxContainer() as container:
        with session(str(container.pid)) as shell:
            ask(shell, f"{INSIDE} -- sleep 987.1 & echo up")
            wait_until(lambda: running("sleep", "987.1"))
            ask(shell, "kill -9 $!; echo killed")
            wait_until(lambda: not running("sleep", "987.1"))
            ask(shell, f"{INSIDE} -- sleep 987.2 & echo up")
            wait_until(lambda: running("sleep", "987.2"))
        wait_until(lambda: not running("sleep", "987.2"))


def test_it_ends_when_cntr_is_killed():
    with BusyboxContainer() as container:
        process = subprocess.Popen(
            [*CNTR, "attach", str(container.pid), "--", "sh", "-c", f"{INSIDE} -- sleep 987.3"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
        )
        wait_until(lambda: running("sleep", "987.3"))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not running("sleep", "987.3"))
