"""The terminal of a session: a real pty, job control and window size; the user's terminal is always restored."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from testkit.container import SlimContainer
from testkit.processes import running
from testkit.waiting import wait_until
from tests.nest.tty import CNTR, Terminal

SECONDS = f"100.{os.getpid()}"  # identifies this test's sleep(1) among those of other tests


@pytest.fixture(scope="module")
def container():
    with SlimContainer("tty") as running:
        yield running


@pytest.fixture(params=["mount", "fuse"])
def terminal(container, request):
    words = ("attach", "--transport", request.param, str(container.pid), "--", "/bin/bash", "--norc")
    with Terminal(*CNTR, *words) as opened:
        opened.type("PS1='(s)# '\n")
        opened.wait_for(r"\(s\)# '\r?\n")
        opened.wait_for(r"\(s\)# ")
        yield opened


def test_the_session_has_a_terminal_of_its_own_that_tty_can_name(terminal):
    terminal.type("tty\n")
    terminal.wait_for(r"/dev/pts/\d+")
    terminal.type("test -t 0 -a -t 1 -a -t 2 && echo three-$((1+2))\n")
    terminal.wait_for("three-3")


def test_the_container_cannot_see_the_sessions_terminal(container, terminal):
    terminal.type("tty\n")
    number = terminal.wait_for(r"/dev/pts/(\d+)").group(1)
    assert not os.path.exists(f"/proc/{container.pid}/root/dev/pts/{number}")


def test_the_window_size_is_the_users_and_follows_it(terminal):
    terminal.type("stty size\n")
    terminal.wait_for("24 80")
    terminal.resize(31, 97)
    # The kernel signals the foreground group of the user's terminal, which is cntr.
    terminal.type("until [ \"$(stty size)\" = '31 97' ]; do sleep 0.02; done; echo resized-$((1+1))\n")
    terminal.wait_for("resized-2")


def test_ctrl_c_interrupts_the_command_not_the_session(terminal):
    terminal.type(f"sleep {SECONDS}; echo status-$?\n")
    wait_until(lambda: running("sleep", SECONDS), "the command runs")
    terminal.type("\x03")
    terminal.wait_for(r"\(s\)# ")
    terminal.type("echo still-$((40+2))\n")
    terminal.wait_for("still-42")


def test_ctrl_z_suspends_the_job_in_the_session_and_fg_brings_it_back(terminal):
    terminal.type(f"sleep {SECONDS}\n")
    wait_until(lambda: running("sleep", SECONDS), "the command runs")
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.type("fg\n")
    terminal.wait_for(f"sleep {SECONDS}")
    wait_until(lambda: "S" in running("sleep", SECONDS).values(), "the command to go on")
    terminal.type("\x03")
    terminal.type("echo back-$((6*7))\n")
    terminal.wait_for("back-42")
    assert terminal.process.poll() is None


def test_the_exit_status_is_the_shells_and_the_terminal_is_restored(terminal):
    assert terminal.mode() != terminal.before  # raw while the session runs
    terminal.type("exit 7\n")
    assert terminal.process.wait(10) == 7
    assert terminal.mode() == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_session_and_restores_the_terminal(terminal, number):
    terminal.process.send_signal(number)
    terminal.process.wait(10)
    assert terminal.mode() == terminal.before


def test_closing_the_window_ends_the_session(container, terminal):
    terminal.type("sleep 1234.5 & echo started-$((1+1))\n")
    terminal.wait_for("started-2")
    terminal.hang_up()
    terminal.process.wait(10)
    assert not running("sleep", "1234.5")


def test_a_program_that_ignores_hangups_is_ended_after_the_grace_period(container):
    with Terminal(
        *CNTR, "attach", str(container.pid), "--", "/bin/sh", "-c", "trap '' HUP; echo up-$((1+1)); sleep 4321.5"
    ) as opened:
        opened.wait_for("up-2")
        opened.hang_up()
        opened.process.wait(15)
    assert not running("sleep", "4321.5")


def test_output_of_megabytes_arrives_whole(terminal):
    terminal.type("head -c 3000000 /dev/zero | tr '\\0' x | fold -w 79; echo; echo the-$((3*3))-end\n")
    count = 0
    deadline = time.monotonic() + 60
    while b"the-9-end" not in terminal.shown[-4000:]:
        assert time.monotonic() < deadline
        data = os.read(terminal.master, 65536)
        count += data.count(b"x")
        terminal.shown = (terminal.shown + data)[-4000:]
    assert count >= 3000000


def test_without_a_terminal_on_stdout_the_stdio_is_the_callers(container):
    with Terminal(
        "/bin/sh", "-c", f"{' '.join(CNTR)} attach {container.pid} -- sh -c 'test -t 1; echo out-is-tty-$?' | cat"
    ) as opened:
        opened.wait_for("out-is-tty-1")


def test_suspending_cntr_itself_gives_the_terminal_back_as_it_was(container, terminal):
    """SIGSTOP can't be caught. After SIGCONT the terminal is raw again and the session goes on."""
    os.kill(terminal.process.pid, signal.SIGSTOP)
    subprocess.run(["stty", "-F", os.ttyname(terminal.slave), "sane"], check=True)
    os.kill(terminal.process.pid, signal.SIGCONT)
    terminal.type("echo again-$((2*4))\n")
    terminal.wait_for("again-8")
