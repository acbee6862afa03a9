"""Start and end: terminals, signals, pauses, containers that stop, and what is left."""

import pytest
from conftest import BASE

from lab.errors import CommandFailed


def test_terminal(cntr, machine):
    """A real terminal: size and changes of size, line editing, the exit status."""
    with machine.terminal(cntr.line("slim", "sh"), columns=97, rows=31) as screen:
        screen.type("stty size; echo rea''dy\r")
        assert "31 97" in screen.expect(r"31 97[\s\S]*ready")
        screen.resize(120, 40)
        screen.type("sleep 0.5; stty size\r")
        screen.expect("40 120")
        screen.type("exit 5\r")
        assert screen.wait_closed() == 5


def test_interrupt_key(cntr, machine):
    """Ctrl-C ends the command in the session, not the session."""
    with machine.terminal(cntr.line("slim", "bash", "--norc")) as screen:
        screen.type("sleep 4747\r")
        machine.wait_until_succeeds("pgrep -f '^sleep 4747'")  # bash itself ignores a Ctrl-C between fork and exec
        screen.type("\x03")
        screen.type("echo st''ill here\r")
        screen.expect("still here")
        screen.type("exit\r")
        screen.wait_closed()


def test_terminal_hangs_up(cntr, machine):
    """When the terminal closes, the session ends and no process continues."""
    with machine.terminal(cntr.line("slim", "sleep", "4242")) as _:
        machine.wait_until_succeeds("pgrep -f '^sleep 4242'")
    machine.wait_until_succeeds("! pgrep -f '^sleep 4242'")


def test_paused(cntr, engine, machine):
    """A paused container can be looked into: the session does not join the frozen cgroup."""
    try:
        engine.pause("box")
    except CommandFailed as refusal:
        if machine.driver.name != "here":
            raise
        pytest.skip(f"this host can't pause a container of {engine.name}: {str(refusal).splitlines()[1][10:]}")
    try:
        assert cntr.attach("box", f"cat {BASE}/etc/lab-marker", timeout=20) == "only in the container"
    finally:
        engine.unpause("box")


def test_container_stops(cntr, engine, machine):
    """When the container stops, the session ends at once, says so, and leaves nothing."""
    with engine.changed("box"), machine.background(cntr.line("box", "sleep", "4343")) as session:
        machine.wait_until_succeeds("pgrep -f '^sleep 4343'")
        engine.stop("box")
        status = session.wait(20 * machine.slowness)
        said = session.output()
    assert status != 0
    assert "box" in said, f"expected: a message that names the container\nseen: {said!r}"
    machine.fail("pgrep -f '^sleep 4343'")


def test_nothing_is_left(cntr, traces):
    """After a session, the container's files and the host's mounts and processes are as before."""
    with traces.none_left("box"):
        cntr.attach("box", "ls / >/dev/null; id >/dev/null")


@pytest.mark.container("readonly")
def test_nothing_is_left_in_scratch(cntr, traces):
    """The same for a container of one file; during a session its mounts do not change."""
    with traces.none_left("slim"):
        cntr.attach("slim", "ls / >/dev/null")


def test_killed_leaves_nothing(cntr, machine, traces):
    """After a SIGKILL of cntr no process, mount or FUSE connection is left."""
    with traces.none_left("slim"), machine.background(cntr.line("slim", "sleep", "4444")):
        machine.wait_until_succeeds("pgrep -f '^sleep 4444'")
        machine.succeed("pkill -KILL -f '^[^ ]*python.* attach slim'")
        machine.wait_until_succeeds("! pgrep -f '^sleep 4444'")


def test_two_sessions(cntr, machine):
    """Two sessions at once in one container do not disturb each other."""
    with machine.background(cntr.line("slim", "sleep", "4545")):
        machine.wait_until_succeeds("pgrep -f '^sleep 4545'")
        assert cntr.attach("slim", "pgrep -f 'sleep 454[5]' >/dev/null && echo seen") == "seen"
