"""A11: the caller's terminal and files as standard streams of a program that is not the caller's.

``exec`` runs the container's own program; ``attach`` with another container's tools does so too. Wherever one of 0, 1, 2 is a terminal the program
gets a terminal of its own, or a pipe; a file is not opened for more than its direction; a directory is not handed over.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pathlib
import pty
import select
import subprocess
import termios
import time

import pytest

from testkit import processes
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY

PIDFD_GETFD = 438  # pidfd_getfd(2)
PATTERNS = ("t--", "-t-", "--t", "tt-", "t-t", "-tt", "ttt")  # which of 0, 1, 2 are the terminal


class Screen:
    """A user's terminal with a shell in the background that waits for what is typed: the slave, read in no-echo raw mode."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        mode = termios.tcgetattr(self.slave)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(self.slave, termios.TCSANOW, mode)

    def typed(self) -> bytes:
        """The terminal's pending input, which the user's shell would read next."""
        found = b""
        while select.select([self.slave], [], [], 0.2)[0]:
            found += os.read(self.slave, 4096)
        return found

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen():
    shown = Screen()
    yield shown
    shown.close()


def start(
    container: kit.Hostile, screen: Screen, pattern: str, *words: str, verb: str = "exec", flags: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """cntr with the terminal as its controlling one, and as the standard streams that PATTERN says; the others are pipes."""

    def own() -> None:
        os.setsid()
        fcntl.ioctl(screen.slave, termios.TIOCSCTTY, 0)

    streams = [screen.slave if letter == "t" else subprocess.PIPE for letter in pattern]
    process = subprocess.Popen(
        [*CNTR, verb, str(container.pid), *flags, "--", *words],
        env={**os.environ, "PYTHONPATH": REPOSITORY},
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        preexec_fn=own,
        pass_fds=[screen.slave],
    )
    if process.stdin:
        process.stdin.close()
        process.stdin = None
    return process


def drain(process: subprocess.Popen[bytes], screen: Screen) -> bytes:
    """Wait for its end, reading the screen meanwhile; what was shown."""
    shown, deadline = b"", time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < deadline, "cntr does not end"
        if select.select([screen.master], [], [], 0.05)[0]:
            shown += os.read(screen.master, 65536)
    for stream in (process.stdout, process.stderr):
        if stream:
            shown += stream.read()
            stream.close()
    return shown


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_is_typed_into_the_callers_terminal(accomplice, canary, place, screen, pattern):
    """TIOCSTI through every stream, /dev/tty, and a terminal reopened and taken as the controlling one."""
    with kit.hostile(place, accomplice, capabilities=0xA80425FB | 1 << 21) as container:
        process = start(container, screen, pattern, "/accomplice", "tty")
        drain(process, screen)
        assert b"typed-by-the-container" not in screen.typed()


@pytest.mark.parametrize("pattern", ["t--", "-tt", "ttt"])
def test_nothing_is_typed_from_a_user_namespace(accomplice, canary, place, screen, pattern):
    """Its owner has CAP_SYS_ADMIN there, which TIOCSTI asks for where the terminal is not one's own."""
    with kit.remapped(place, accomplice, capabilities=(1 << 41) - 1) as container:
        process = start(container, screen, pattern, "/accomplice", "tty")
        drain(process, screen)
        assert b"typed-by-the-container" not in screen.typed()


@pytest.mark.parametrize("pattern", ["t--", "tt-", "ttt", "--t"])
def test_no_key_is_read_after_the_end(accomplice, canary, place, screen, pattern):
    """A child that keeps a stream and goes on reading when cntr has ended: the user's password for the next command."""
    reader = "for fd in 0 1 2; do (exec 3<&$fd; setsid sh -c 'while :; do cat <&3 >>/loot; sleep 0.05; done' &) ; done; sleep 0.2"
    with kit.hostile(place, accomplice) as container:
        process = start(container, screen, pattern, "sh", "-c", reader)
        drain(process, screen)
        os.write(screen.master, b"password-word")
        wait_until(lambda: b"password-word" in screen.typed() or container.loot, "somebody has read the key", 3)
        assert not any("password-word" in line for line in container.loot)


def test_no_key_is_read_while_it_runs_unless_it_is_stdin(accomplice, canary, place, screen):
    """`cntr exec … | less`: the terminal is stderr's alone, and what is typed is the pager's."""
    with kit.hostile(place, accomplice) as container:
        process = start(
            container, screen, "--t", "sh", "-c", "timeout 0.5 cat <&2 >>/loot; timeout 0.5 cat </dev/tty >>/loot; true"
        )
        time.sleep(0.3)
        os.write(screen.master, b"password-word\n")
        drain(process, screen)
        assert not any("password-word" in line for line in container.loot)


@pytest.mark.parametrize("verb", ["exec", "tools"])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_file_is_not_opened_for_more_than_its_direction(accomplice, canary, place, verb, stream):
    """`< notes`: not written. `>> log`: not read. By /proc/self/fd/N the kernel opens the file anew, as whoever asks may."""
    file = place / "file"
    file.write_text(f"{canary.secret}\n")
    file.chmod(0o600)
    with kit.hostile(place, accomplice) as container, kit.hostile(place, accomplice, root=place / "other") as other:
        streams = [subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE]
        flags = os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_APPEND
        streams[stream] = os.open(file, flags)
        words = (
            ["exec", str(container.pid)]
            if verb == "exec"
            else ["attach", str(other.pid), "--tools", str(container.pid)]
        )
        done = subprocess.run(
            [*CNTR, *words, "--", "/accomplice", "streams"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            timeout=30,
            check=False,
        )
        os.close(streams[stream])
        said = (done.stdout or b"") + (done.stderr or b"") + file.read_bytes() * (stream == 2)
        assert stream == 0 or f"read {stream}".encode() not in said
        assert f"changed the mode of {stream}".encode() not in said
        assert file.stat().st_mode & 0o7777 == 0o600
        if stream == 0:
            assert file.read_text() == f"{canary.secret}\n"
            assert b"wrote to 0" not in said


def test_a_directory_as_stdin(accomplice, canary, place):
    """`cntr exec … </some/dir`: a directory of the host's open in the container is a way out of it."""
    with kit.hostile(place, accomplice) as container:
        where = os.open(canary.directory, os.O_RDONLY | os.O_DIRECTORY)
        done = subprocess.run(
            [*CNTR, "exec", str(container.pid), "--", "/accomplice", "streams"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=where,
            capture_output=True,
            timeout=30,
            check=False,
        )
        os.close(where)
        assert b"saw canary" not in done.stdout + done.stderr
        assert b"saw opt" not in done.stdout + done.stderr


@pytest.mark.parametrize("flags", [os.O_PATH | os.O_DIRECTORY, os.O_PATH])
def test_a_handle_as_stdin(accomplice, canary, place, flags):
    """An O_PATH fd is a place to begin a path at, too."""
    with kit.hostile(place, accomplice, programs={"/bin/proof": accomplice}) as container:
        where = os.open(canary.directory if flags & os.O_DIRECTORY else canary.path, flags)
        done = subprocess.run(
            [
                *CNTR,
                "exec",
                str(container.pid),
                "--",
                "sh",
                "-c",
                f"cat /proc/self/fd/0 /proc/self/fd/0/canary /proc/self/fd/0/../../..{canary.path}",
            ],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=where,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        os.close(where)
        assert canary.secret not in done.stdout + done.stderr


def test_a_host_socket_as_stdin_is_what_was_given(accomplice, canary, place):
    """Control: a pipe that is given works."""
    with kit.hostile(place, accomplice) as container:
        assert container.exec("--", "cat", input="through\n").stdout == "through\n"


def test_control_the_terminal_is_there_to_be_typed_into(accomplice, screen):
    """A program that has the terminal as its own may type there (where the kernel still lets it: dev.tty.legacy_tiocsti)."""
    legacy = pathlib.Path("/proc/sys/dev/tty/legacy_tiocsti")

    def own() -> None:
        os.setsid()
        fcntl.ioctl(screen.slave, termios.TIOCSCTTY, 0)

    subprocess.run(
        [accomplice, "tty"], stdin=screen.slave, stdout=subprocess.DEVNULL, preexec_fn=own, check=False, cwd="/"
    )
    assert b"typed-by-the-container" in screen.typed() or (legacy.exists() and legacy.read_text().strip() == "0")


def taken(pid: int, uid: int) -> list[str]:
    """What a user of the host finds behind 0, 1 and 2 of a process: the owner of a user namespace
    has all capabilities over its processes.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            libc, holder = ctypes.CDLL(None), os.pidfd_open(pid)
            fds = [libc.syscall(PIDFD_GETFD, holder, fd, 0) for fd in (0, 1, 2)]
            os.write(writing, " ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in fds if fd >= 0).encode() or b"-")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read().split()


def test_a_user_takes_the_streams_of_roots_session_in_their_container(accomplice, canary, place, transport):
    """From outside, without capabilities on the host: root's pipes are not there, and root is told who can watch."""
    container = kit.remapped(place, accomplice)
    container.maker = 1000
    with container:
        process = subprocess.Popen(
            [*CNTR, "attach", str(container.pid), "--transport", transport, "--", "sleep", "60.0441"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            (pid,) = wait_until(lambda: processes.running("sleep", "60.0441"), "it runs")
            found = taken(pid, 1000)
            assert len(found) == 3, "the owner of the namespace can see them"
            ours = [
                os.readlink(f"/proc/self/fd/{end.fileno()}") for end in (process.stdin, process.stdout, process.stderr)
            ]
            assert not set(found) & set(ours)
            process.terminate()
            error = process.communicate(timeout=20)[1]
        finally:
            process.kill()
            process.wait()
        assert "can see and do what this session can" in error
