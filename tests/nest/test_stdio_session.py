"""The standard streams of sessions and of ``exec``; test_stdio.py tests the relay by itself."""

from __future__ import annotations

import os
import subprocess

import pytest

from testkit.container import SlimContainer
from tests.nest.busybox import BUSYBOX, CNTR, REPOSITORY, BusyboxContainer
from tests.nest.tty import Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a container")
ENVIRONMENT = {**os.environ, "PYTHONPATH": REPOSITORY}


@pytest.fixture(scope="module")
def container():
    with BusyboxContainer(mounts=None) as running:
        yield running


def words(container: SlimContainer, how: str, *flags: str) -> str:
    return " ".join([*CNTR, how, *flags, str(container.pid), "--"])


def shell(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        env=ENVIRONMENT,
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )  # type: ignore[call-overload]


HOW = pytest.mark.parametrize(("how", "flags"), [("attach", ()), ("attach", ("--transport", "fuse")), ("exec", ())])


@HOW
def test_files_as_stdin_and_stdout(container, how, flags, tmp_path):
    data = "".join(f"line {i}\n" for i in range(30000))
    (tmp_path / "in").write_text(data)
    command = words(container, how, *flags)
    done = shell(f"{command} /bin/cat < in > out; echo $?", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (tmp_path / "out").read_text() == data
    done = shell(f"{{ {command} /bin/true; {command} /bin/sh -c 'read x; echo got $x'; head -1; }} < in", cwd=tmp_path)
    assert done.stdout == "got line 0\nline 1\n", done
    (tmp_path / "in").write_text("original")
    done = shell(
        f"{command} /bin/sh -c 'echo over > /proc/self/fd/0; echo over > /dev/stdin; cd /proc/self/fd/0' < in",
        cwd=tmp_path,
    )
    assert (tmp_path / "in").read_text() == "original"
    done = shell(f"{command} /bin/sh -c 'cd /proc/self/fd/0/etc && echo in' < /")
    assert done.stdout == ""


@HOW
def test_pipes_status_order_and_end(container, how, flags):
    command = words(container, how, *flags)
    done = shell(
        f"printf '1\\n2\\n3\\n' | while read x; do {command} /bin/sh -c \"echo o$x; echo e$x >&2; exit $x\" 2>&1; echo $?; done"
    )
    assert done.stdout == "".join(f"o{i}\ne{i}\n{i}\n" for i in (1, 2, 3)), done
    done = shell(f"head -c 3000000 /dev/zero | {command} /bin/cat | wc -c")
    assert done.stdout.strip() == "3000000", done
    program = "/bin/busybox yes" if how == "exec" else "yes"
    done = shell(f"{command} {program} | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == "y\n141\n", done


@pytest.mark.parametrize("how", ["attach", "exec"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed_are_the_null_device(container, how, closed, tmp_path):
    """And never the next file that cntr opens."""
    done = shell(
        f"{words(container, how)} /bin/sh -c 'for n in 0 1 2; do test -c /proc/$$/fd/$n && echo $n >&2; done; exit 5' {closed}; echo $?"
    )
    assert done.stdout.splitlines()[-1] == "5", done
    if "2>" not in closed:
        assert done.stderr.split() == [{"<&-": "0", ">&-": "1"}[closed]]


@pytest.mark.parametrize("how", ["attach", "exec"])
def test_a_pipe_is_the_callers_own_for_tools_alone(container, how):
    reading, writing = os.pipe()
    link = os.readlink(f"/proc/self/fd/{writing}")
    command = [*CNTR, how, str(container.pid), "--", "/bin/sh", "-c", "ls -l /proc/$$/fd >&2; true"]
    done = subprocess.run(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.close(reading)
    os.close(writing)
    assert (link in done.stderr) == (how == "attach"), done


@pytest.mark.parametrize("how", ["attach", "exec"])
def test_the_null_device_is_not_the_hosts_to_change(container, how):
    assert BUSYBOX
    before = os.stat("/dev/null").st_mode
    program = "/bin/busybox chmod" if how == "exec" else "chmod"
    done = shell(f"{words(container, how)} {program} 600 /proc/self/fd/0 < /dev/null")
    assert "Read-only file system" in done.stderr, done
    assert os.stat("/dev/null").st_mode == before


@pytest.mark.parametrize("how", ["attach", "exec"])
def test_a_terminal_is_never_handed_over(container, how):
    """If stdout is a pipe, it can neither be read after the end nor typed into."""
    script = "for fd in 0 1 2; do test -t $fd; echo $fd-$?; done; echo > /dev/tty"
    with Terminal(
        "bash", "-c", f"{words(container, how)} /bin/sh -c '{script}' | cat; read x; echo bash-read-$x", env=ENVIRONMENT
    ) as opened:
        opened.wait_for("0-1")
        opened.wait_for("1-1")
        opened.wait_for("2-1")
        opened.type("mine\n")
        opened.wait_for("bash-read-mine")


def test_errors_of_a_session_at_a_terminal_go_where_they_are_sent(container, tmp_path):
    with Terminal(
        "bash",
        "-c",
        f"{words(container, 'attach')} sh -c 'echo wrong >&2; test -t 1 && echo is-tty' 2> {tmp_path}/err",
        env=ENVIRONMENT,
    ) as opened:
        opened.wait_for("is-tty")
        assert opened.process.wait(20) == 0
    assert (tmp_path / "err").read_text() == "wrong\n"


def test_a_full_disk_is_said_and_is_the_status(container):
    done = shell(f"{words(container, 'exec')} /bin/sh -c 'echo lost' > /dev/full; echo $? >&2")
    assert "cntr: stdout: No space left on device" in done.stderr
    assert done.stderr.splitlines()[-1] == "125"
