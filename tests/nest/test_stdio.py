"""Standard streams: which ones of the caller's a command gets, and that relaying through cntr's pipes is not
noticeable.
"""

from __future__ import annotations

import _thread
import os
import pathlib
import select
import subprocess
import sys
import time

import pytest

from cntr.attach import readers
from cntr.attach.relays import Input
from tests.nest.busybox import REPOSITORY
from tests.nest.tty import Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a private /dev/null is a mount")
PIPED = [sys.executable, "-m", "tests.nest.piped"]
FOREIGN, TOOLS = [*PIPED, "foreign"], [*PIPED, "tools"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": REPOSITORY}


def piped(*command: str, how: list[str] = FOREIGN, **options: object) -> subprocess.CompletedProcess[bytes]:
    options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
    for stream in ("stdout", "stderr"):
        options.setdefault(stream, subprocess.PIPE)
    return subprocess.run([*how, *command], env=ENVIRONMENT, check=False, timeout=60, **options)  # type: ignore[call-overload]


def shell(script: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a script in which $F runs a command as ``exec`` does, $T as ``attach`` does."""
    environment = {**ENVIRONMENT, "F": " ".join(FOREIGN), "T": " ".join(TOOLS)}
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, check=False, timeout=60, **options
    )  # type: ignore[call-overload]


def test_input_that_nobody_will_read_is_left_where_it_is():
    """One poll(2) reports both that the command has closed its stdin and that there is more input."""
    (reading, writing), (given, pipe) = os.pipe(), os.pipe()
    os.write(writing, b"rest")
    moved = Input(reading, pipe, given, terminal=False, file=False)
    os.close(given)
    assert moved.ready(pipe, select.POLLERR)
    assert moved.ready(reading, select.POLLIN)
    assert moved.interests() == {}
    assert os.read(reading, 9) == b"rest"
    moved.close()
    os.close(reading)
    os.close(writing)


def test_the_end_of_the_sessions_processes_does_not_cut_what_they_wrote(tmp_path):
    """Their SIGCHLD arrives while the last output waits for a slow reader."""
    slow = "until test -e ended; do sleep 0.01; done; wc -c"
    done = shell(f"$F sh -c 'head -c 120000 /dev/zero; touch ended' | ({slow})", cwd=tmp_path)
    assert done.stdout == b"120000\n", done


KINDS = "import os, stat, sys; print(*(os.readlink(f'/proc/self/fd/{fd}').split(':')[0] for fd in (0, 1, 2)))"


@pytest.mark.parametrize(("how", "pipes"), [(FOREIGN, "other"), (TOOLS, "same")])
def test_files_are_never_handed_over_and_pipes_to_tools_only(how, pipes, tmp_path):
    out, own = tmp_path / "out", tmp_path / "in"
    own.write_text("text")
    reading, writing = os.pipe()
    with out.open("wb") as stdout, own.open("rb") as stdin:
        done = subprocess.run(
            [*how, "python3", "-c", KINDS], env=ENVIRONMENT, stdin=stdin, stdout=stdout, stderr=writing, check=True
        )
    os.close(writing)
    assert (done.returncode, out.read_text()) == (0, "pipe pipe pipe\n")
    os.close(reading)
    same = f"import os; print(os.stat(0).st_ino == {os.stat(own).st_ino}, os.readlink('/proc/self/fd/2'))"
    reading, writing = os.pipe()
    with own.open("rb") as stdin:
        done = piped("python3", "-c", same, how=how, stdin=stdin, stderr=writing)
    link = os.readlink(f"/proc/self/fd/{writing}")
    assert done.stdout == f"False {link}\n".encode() if pipes == "same" else link.encode() not in done.stdout
    os.close(reading)
    os.close(writing)


def test_a_directory_or_a_device_as_stdin_is_not_handed_over():
    for path in ("/", "/dev/zero"):
        fd = os.open(path, os.O_RDONLY)
        try:
            done = piped("sh", "-c", "cd /proc/self/fd/0/etc && echo in; head -c 3 | od -An -tx1", stdin=fd)
        finally:
            os.close(fd)
        assert done.stdout.strip() == (b"" if path == "/" else b"00 00 00"), done


def test_a_file_opened_for_reading_cannot_be_opened_for_writing(tmp_path):
    own = tmp_path / "file"
    own.write_text("original")
    for how in (FOREIGN, TOOLS):
        with own.open("rb") as stdin:
            piped("sh", "-c", "echo overwritten > /proc/self/fd/0; echo more >> /dev/stdin", how=how, stdin=stdin)
        assert own.read_text() == "original"


def test_the_null_device_cannot_be_changed():
    before = os.stat("/dev/null")
    done = piped("python3", "-c", "import os; os.write(1, b'x'); os.fchmod(1, 0o600)", stdout=subprocess.DEVNULL)
    assert b"Read-only file system" in done.stderr, done
    assert os.stat("/dev/null").st_mode == before.st_mode
    assert piped("sh", "-c", "cat; echo x > /dev/null").returncode == 0


def test_a_command_of_another_uid_can_open_its_standard_streams_by_name():
    """Run by root here; the owner is set as for a terminal."""
    assert (
        piped("sh", "-c", "echo a > /dev/stdout; echo b > /dev/stderr; cat /dev/stdin", input=b"c\n").stdout
        == b"a\nc\n"
    )


DATA = bytes(range(256)) * 8000


@pytest.mark.parametrize("how", [FOREIGN, TOOLS])
def test_large_binary_data_arrives_whole_both_ways(how, tmp_path):
    assert piped("cat", how=how, input=DATA).stdout == DATA
    own, out = tmp_path / "in", tmp_path / "out"
    own.write_bytes(DATA)
    with own.open("rb") as stdin, out.open("wb") as stdout:
        assert piped("cat", how=how, stdin=stdin, stdout=stdout).returncode == 0
    assert out.read_bytes() == DATA
    with out.open("ab") as stdout:
        piped("echo", "more", how=how, stdout=stdout)
    assert out.read_bytes() == DATA + b"more\n"


def test_output_and_errors_into_one_keep_their_order(tmp_path):
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {i}\nerr {i}\n" for i in range(1, 10)).encode()
    assert piped("sh", "-c", script, stderr=subprocess.STDOUT).stdout == expected
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        piped("sh", "-c", script, stdout=stdout, stderr=subprocess.STDOUT)
    assert out.read_bytes() == expected


def test_the_last_output_is_not_lost_and_the_status_is_the_commands():
    done = piped("sh", "-c", "head -c 300000 /dev/zero; echo end >&2; exit 7")
    assert (len(done.stdout), done.stderr, done.returncode) == (300000, b"end\n", 7)


def test_a_slow_reader_gets_all_of_it():
    done = shell("$F head -c 1000000 /dev/zero | (sleep 0.3; wc -c)")
    assert done.stdout.strip() == b"1000000", done


def test_a_reader_that_leaves_ends_the_writer():
    done = shell("$F sh -c 'yes; echo $? >&2' | head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout == b"y\n0\n", done
    assert done.stderr == b"141\n"


def test_a_reader_that_never_reads_is_waited_for_until_a_signal():
    process = subprocess.Popen([*FOREIGN, "head", "-c", "100000", "/dev/zero"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    children, deadline = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + 20
    while not children.read_text().strip():
        assert time.monotonic() < deadline
    while children.read_text().strip():  # the command ends, as its output fits into the pipes
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None
    process.terminate()
    process.wait(10)
    assert process.stdout
    process.stdout.close()


def test_end_of_file_is_passed_on_and_a_closed_stdin_stops_the_reading():
    assert piped("sh", "-c", "cat; echo end", input=b"x").stdout == b"xend\n"
    done = piped("sh", "-c", "head -c 1; exec <&-; echo closed", input=b"y" * 500000)
    assert done.stdout == b"yclosed\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed(closed):
    done = shell(f"$F sh -c 'ls /proc/self/fd >&3' 3>&1 {closed}; exit 0")
    assert b"Traceback" not in done.stderr


def test_a_full_disk_is_said():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        done = piped("sh", "-c", "echo lost", stdout=fd)
    finally:
        os.close(fd)
    assert b"CntrError: stdout: No space left on device" in done.stderr
    assert done.returncode == 1  # a traceback's status; cntr's own is 125


@pytest.mark.parametrize("how", ["$F", "$T"])
def test_a_command_that_does_not_read_leaves_the_input_to_others(how):
    for feed in ("printf '1\\n2\\n3\\n' |", ""):
        done = shell(f"{feed} while read x; do echo got $x; {how} true; done {'' if feed else '< <(seq 3)'}")
        assert done.stdout == b"got 1\ngot 2\ngot 3\n", done


@pytest.mark.parametrize("how", ["$F", "$T"])
def test_a_file_is_left_at_the_offset_that_was_read_to(how, tmp_path):
    (tmp_path / "list").write_text("1\n2\n3\n4\n")
    done = shell(f"{{ {how} true; {how} sh -c 'read x; echo got $x'; cat; }} < list", cwd=tmp_path)
    assert done.stdout == b"got 1\n2\n3\n4\n", done


WAITERS = {
    "read": "import os; os.read(0, 1)",
    "readv": "import os; os.readv(0, [bytearray(1)])",
    "poll": "import select; p = select.poll(); p.register(0, 1); p.poll(); import os; os.read(0, 1)",
    "select": "import select, os; select.select([0], [], []); os.read(0, 1)",
    "epoll": "import select, os; p = select.epoll(); p.register(0, 1); p.poll(); os.read(0, 1)",
    "thread": "import threading, os; t = threading.Thread(target=os.read, args=(0, 1)); t.start(); t.join()",
    "other fd": "import os; fd = os.dup(0); os.close(0); os.read(fd, 1)",
    "splice": "import os; r, w = os.pipe(); os.splice(0, w, 1)",
}


@pytest.mark.parametrize("way", WAITERS)
def test_whoever_waits_for_input_gets_it(way):
    done = piped("python3", "-c", WAITERS[way] + "; print('got')", input=b"x" * 100)
    assert done.stdout == b"got\n", done


def test_the_terminals_keys_are_taken_only_by_a_command_that_reads():
    words = " ".join(FOREIGN)
    with Terminal(
        "bash",
        "-c",
        f"{words} sleep 1 | cat; read x; echo got-$x-by-bash; {words} head -1 | sed s/^/head-/",
        env=ENVIRONMENT,
    ) as opened:
        opened.type("first\n")
        opened.wait_for("got-first-by-bash")
        opened.type("second\n")
        opened.wait_for("head-second")


def test_the_terminal_is_not_handed_over():
    check = "import os; print([os.isatty(fd) for fd in (0, 1, 2)]); os.open('/dev/tty', os.O_RDWR)"
    with Terminal(*FOREIGN, "python3", "-c", check, env=ENVIRONMENT) as opened:
        opened.wait_for(r"\[False, False, False\]")
        opened.wait_for("No such device or address")


def test_signals_reach_the_command():
    with subprocess.Popen(
        [*FOREIGN, "sh", "-c", "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.1; done"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.stdout.read() == b"term\n"
        assert process.wait(10) == 3


def test_nothing_spins():
    """A command that doesn't read its input costs almost no time."""
    reading, writing = os.pipe()
    os.write(writing, b"waits to be read")
    process = subprocess.Popen([*FOREIGN, "sleep", "1.5"], env=ENVIRONMENT, stdin=reading)
    try:
        time.sleep(1.2)
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 1.0
    finally:
        process.wait(10)
        os.close(reading)
        os.close(writing)


def test_memory_that_never_answers_is_taken_for_a_reader(monkeypatch):
    """The fds that a program waits for are in its memory, which may be mapped from a file whose server is silent."""
    held = _thread.allocate_lock()
    held.acquire()
    monkeypatch.setattr(readers.os, "pread", lambda *_: held.acquire())
    code = "import select; p = select.poll(); p.register(0, 1); print('ready', flush=True); p.poll()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        proc_fd = os.open("/proc", os.O_PATH)
        deadline = time.monotonic() + 10
        while not readers.wanted(proc_fd, [str(process.pid)], "pipe:[0]"):
            assert time.monotonic() < deadline
        assert str(process.pid) in readers._silent, "it must not be checked again"
        os.close(proc_fd)
    finally:
        readers._silent.clear()
        held.release()
        process.stdin.close()
        process.stdout.close()
        process.wait(10)
