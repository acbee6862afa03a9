"""``cntr --host`` with a real sshd and ssh; the far machine is this one in a mount namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from cntr.errors import UsageError
from cntr.remote.ssh import Host
from testkit.far import WORKER, runs
from tests.nest.busybox import BusyboxContainer
from tests.nest.tty import Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def container():
    with BusyboxContainer("far") as found:
        yield found


@pytest.mark.parametrize("user", ["root", "worker"])
def test_a_session_there_is_as_one_here(far, container, user):
    """Bytes, arguments, variables and statuses; one connection, two the first time; one file that nobody else can read."""
    host, pid = f"ssh://{user}@far:{far.port}", str(container.pid)
    before = far.connections()
    everything = bytes(range(256)) * 300
    done = far.run("attach", pid, "--", "cat", host=host, input=everything)
    assert (done.stderr, done.returncode, done.stdout == everything) == (b"", 0, True)
    assert far.connections() == before + 2
    words = ["it's", '"$HOME"', "a\\b", "new\nline", "…", "*", "!1", "", "--far", "{token}"]
    done = far.run(
        "attach",
        pid,
        "-e",
        "A=b c",
        "--",
        "sh",
        "-c",
        'printf "%s|" "$@" "$A"; echo err >&2; exit 255',
        "sh",
        *words,
        host=host,
    )
    assert done.stdout.decode() == "|".join([*words, "b c", ""])
    assert (done.stderr, done.returncode) == (b"err\n", 255)
    assert far.connections() == before + 3
    assert far.run("attach", pid, "--", "no-such-command", host=host).returncode == 127
    assert far.run("attach", pid, "--", "sh", "-c", "kill -9 $$", host=host).returncode == 137
    assert far.run("exec", pid, "--", "/bin/readlink", "/proc/self/exe", host=host).stdout == b"/bin/busybox\n"
    place = far.place / f"home-{user}/.cache/cntr/far"
    (file,) = place.iterdir()
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o700)
    assert file.stat().st_uid == (WORKER if user == "worker" else 0)
    file.unlink()  # if the far side has lost it
    for number in range(6):
        (place / f"{number}.pyz").touch()
        os.utime(place / f"{number}.pyz", (number, number))
    (place / "run-left").write_text("4194303")
    done = far.run("attach", pid, "--", "echo", "again", host=host)
    assert (done.stdout, done.stderr) == (b"again\n", b"")
    assert sorted(path.name for path in place.iterdir()) == sorted(["3.pyz", "4.pyz", "5.pyz", file.name])


def test_an_error_of_sshs_is_no_status_of_a_commands(far, container):
    for host, said in (("ssh://root@far:1", "Connection refused"), ("nobody-known@far", "Permission denied")):
        done = far.run("attach", str(container.pid), host=host)
        assert done.returncode == 125
        assert done.stderr.decode().startswith(f"cntr: {host}: "), done.stderr
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 2
    done = far.run("ps", host="bare@far")
    assert (done.returncode, done.stderr.splitlines()[0]) == (125, b"cntr: bare@far: there is no python3")
    done = far.run("attach", "no-such-container")
    assert (done.returncode, done.stderr[:24]) == (125, b"cntr: no-such-container:")


def test_a_terminal_there_is_as_one_here(far, container):
    """Its size, resizing, keys and the status; and the session ends when the terminal is gone."""
    assert far.run("ps").returncode == 0  # by now it has arrived
    mark = f"79{os.getpid()}1"
    script = f"stty size; read a; stty size; echo got $a; sleep {mark}"
    command = far.command("--host", "worker@far", "attach", str(container.pid), "--", "sh", "-c", script)
    with Terminal(*command, env=far.environment) as terminal:
        terminal.wait_for("24 80")
        terminal.resize(30, 91)
        terminal.type("x\n")
        terminal.wait_for("30 91")
        terminal.wait_for("got x")
        far.wait(lambda: runs(mark))
        terminal.hang_up()
        far.wait(lambda: not runs(mark))
    with Terminal(*command[:-1], "read a; exit 3", env=far.environment) as terminal:
        terminal.type("x\n")
        assert terminal.process.wait(20) == 3
        assert terminal.mode() == terminal.before


def test_a_signal_reaches_the_far_command(far, container):
    """And its output comes back."""
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = far.popen(
        "attach", str(container.pid), "--", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == b"got it\n"
    assert process.returncode == 9


def test_nothing_is_left_there_when_the_near_side_is_killed(far, container):
    mark = f"78{os.getpid()}1"
    script = f"trap '' HUP TERM; echo ready; while :; do sleep {mark}; done"
    process = far.popen(
        "attach", str(container.pid), "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    far.wait(lambda: runs(mark))
    process.kill()
    process.communicate()
    far.wait(lambda: not runs(mark) and not runs(script))
    far.wait(lambda: not list((far.place / "home-worker/.cache/cntr/far").glob("run-*")))


def test_ps_of_several_is_one_table(far):
    hosts = f"root@far,ssh://worker@also:{far.port},ssh://root@far:1"
    command = far.command("ps", "--json", "--host", hosts)
    done = subprocess.run(command, env=far.environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 125
    assert isinstance(json.loads(done.stdout), list)
    shown = far.run("ps", "--all", host=hosts).stdout.decode()
    assert shown.startswith("HOST")
    assert shown.splitlines()[-1].startswith("ssh://root@far:1: ")
    assert "Connection refused" in shown


NO_HOSTS = [
    "-oProxyCommand=touch /x",
    "ssh://-l@x",
    "ssh://a@-x",
    "a b",
    "x;y",
    "$(x)",
    "",
    "ssh://x:y",
    "ssh://x:0",
    "tcp://x",
]
NO_HOSTS += ["ssh://[::1", "ssh://x:99999", "@x", "x/y", "é"]


@pytest.mark.parametrize("name", NO_HOSTS)
def test_what_is_no_host_is_not_given_to_ssh(name):
    with pytest.raises(UsageError):
        Host(name)


def test_what_is_one(far):
    for text, words in (
        ("ssh://u@h:22", ["-p", "22", "-l", "u", "--", "h"]),
        ("ssh://[fe80::1%eth0]:22", ["-p", "22", "--", "fe80::1%eth0"]),
        ("h", ["--", "h"]),
        ("u@h.example", ["-l", "u", "--", "h.example"]),
    ):
        assert Host(text).command([], "")[1:-1] == words


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "tcsh", "mksh"])
def test_every_login_shell_takes_it(shell):
    if not shutil.which(shell):
        pytest.skip(f"not installed: {shell}")
    code = Host("h").command([], "print('it\\'s \"$HOME\" `x` \\\\ !1')")[-1]
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ('it\'s "$HOME" `x` \\ !1\n', "")
