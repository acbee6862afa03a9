"""A slow disk below the mount delays only its users, and a slow server is not mistaken for a dead one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testkit.servers import Server, TreeUnderTest, missing, place
from testkit.waiting import wait_until

from .slow import BYTES_PER_SECOND, LOOKUP_SECONDS, SYNC_SECONDS

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
MIB = 1 << 20
PROMPT = 1.0  # seconds for a call unrelated to the slow disk, on a loaded machine
HANG_SECONDS = 1


@contextlib.contextmanager
def on_a_slow_disk(binding: str) -> Iterator[TreeUnderTest]:
    """``slow`` in its tree is on the slow disk."""
    with place(binding, options=("-o", f"hang_timeout={HANG_SECONDS}")) as outer:
        for name in ("disk", "source/slow"):
            (outer.base / name).mkdir()
        argv = (
            sys.executable,
            "-m",
            "tests.fs.slow",
            "{source}",
            "{mountpoint}",
            "--foreground",
            "-o",
            "no_passthrough",
        )
        inner = Server("devfuse", outer.base / "disk", outer.behind / "slow", outer.base / "inner-log", argv)
        inner.start()
        wait_until(lambda: "d" not in os.listdir(outer.behind / "slow"), "the slow disk", 20)  # it serves
        try:
            yield outer
            assert outer.server is not None
            assert outer.server.alive, outer.server.log_end()
            assert not outer.server.new_suspicious_lines()
        finally:
            problem = outer.server.stop() if outer.server is not None else ""
            inner_problem = inner.stop()
        assert not problem
        assert not inner_problem


@pytest.fixture(params=["devfuse", "devfuse-io_uring"])
def here(request: pytest.FixtureRequest) -> Iterator[TreeUnderTest]:
    if missing(request.param):
        pytest.skip(missing(request.param))
    with on_a_slow_disk(request.param) as made:
        yield made


@contextlib.contextmanager
def nobody_else_waits(here: TreeUnderTest) -> Iterator[list[float]]:
    """Meanwhile another client uses another directory of the mount; yields how long its calls took."""
    took: list[float] = []
    others = here.directory / "others"
    others.mkdir()
    ended = threading.Event()

    def use() -> None:
        number = 0
        while not ended.wait(0.02):
            began = time.monotonic()
            number += 1
            path = others / f"file{number}"
            path.write_bytes(b"x")
            path.unlink()
            took.append(time.monotonic() - began)

    user = threading.Thread(target=use)
    user.start()
    try:
        yield took
    finally:
        ended.set()
        user.join()


def test_a_copy(here: TreeUnderTest) -> None:
    """A copy_file_range(2) of the whole file is done in steps, each of them short."""
    size = 3 * BYTES_PER_SECOND
    (here.base / "disk" / "a").write_bytes(os.urandom(MIB) * (size // MIB))
    with nobody_else_waits(here) as took:
        began, done = time.monotonic(), 0
        with open(here.directory / "slow" / "a", "rb") as source, open(here.directory / "slow" / "b", "wb") as target:
            while turn := os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
                done += turn
        seconds = time.monotonic() - began
    assert done == size
    assert seconds > 2, "the disk was not slow"
    assert len(took) > 10
    assert max(took) < PROMPT
    assert (here.base / "disk" / "a").read_bytes() == (here.base / "disk" / "b").read_bytes()


def test_a_copier_that_is_killed(here: TreeUnderTest) -> None:
    (here.base / "disk" / "a").write_bytes(bytes(20 * BYTES_PER_SECOND))
    script = "import os,sys; os.copy_file_range(*(os.open(p, os.O_RDWR | os.O_CREAT) for p in sys.argv[1:3]), 1 << 30)"
    paths = [str(here.directory / "slow" / name) for name in ("a", "b")]
    with subprocess.Popen([sys.executable, "-c", f"while True: exec({script!r})", *paths]) as copier:
        deadline = time.monotonic() + 20
        while not (here.base / "disk" / "b").exists() or not (here.base / "disk" / "b").stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        copier.kill()
        copier.wait(20)
    assert time.monotonic() - began < 3


def test_many_fsyncs(here: TreeUnderTest) -> None:
    """Those of one disk share its time, and those of another disk do not wait."""

    def sync(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())

    threads = [threading.Thread(target=sync, args=(here.directory / "slow" / f"f{n}",)) for n in range(6)]
    with nobody_else_waits(here) as took:
        began = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        sync(here.directory / "elsewhere")
        elsewhere = time.monotonic() - began
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    assert elsewhere < SYNC_SECONDS, "one disk waited for the other"
    assert SYNC_SECONDS * 0.9 < seconds < SYNC_SECONDS * 3, "the syncs must be done one after the other"
    assert max(took) < PROMPT


def test_a_close_that_flushes(here: TreeUnderTest) -> None:
    """As on NFS: close(2) writes what is left, and the caller waits for it."""
    fd = os.open(here.directory / "slow" / "program", os.O_WRONLY | os.O_CREAT, 0o755)
    os.write(fd, b"x")
    with nobody_else_waits(here) as took:
        began = time.monotonic()
        os.close(fd)
        seconds = time.monotonic() - began
        time.sleep(0.2)
    assert seconds > SYNC_SECONDS * 0.9
    assert max(took) < PROMPT


def test_a_lookup(here: TreeUnderTest) -> None:
    """A lookup waits until the name is there, even longer than hang_timeout; other clients do not wait."""
    (here.base / "disk" / "sleepy").write_bytes(b"well?")
    read: list[bytes] = []
    sleeper = threading.Thread(target=lambda: read.append((here.directory / "slow" / "sleepy").read_bytes()))
    with nobody_else_waits(here) as took:
        began = time.monotonic()
        sleeper.start()
        sleeper.join()
        seconds = time.monotonic() - began
    assert read == [b"well?"]
    assert LOOKUP_SECONDS * 0.9 < seconds < LOOKUP_SECONDS * 1.9, "the lookup must wait once, not twice"
    assert max(took) < PROMPT


@pytest.mark.parametrize("seen", [False, True])
def test_a_backing_that_hangs(here: TreeUnderTest, seen: bool) -> None:
    """Whoever asks for its names and attributes waits; the mount and its watchdog carry on."""
    (here.base / "disk" / "d").mkdir()
    (here.base / "disk" / "d" / "file").write_bytes(b"x")
    slow = here.directory / "slow"
    asked = [lambda: slow.stat(), lambda: (slow / "d").stat(), lambda: (slow / "d" / "file").read_bytes()]
    asked += [lambda: os.listdir(slow), lambda: (slow / "none").exists()]
    inside = here.base / "disk"
    expected = [_answer((inside / name).stat) for name in ("", "d")] + [b"x", ["d"], False]
    if seen:
        for ask in asked:
            ask()
        time.sleep(1.1)  # what the kernel caches of an unwatched mount has expired by then
    servers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _serves(pid, here.behind / "slow")]
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        answers: list[object] = []
        threads = [threading.Thread(target=lambda ask=ask: answers.append(_answer(ask))) for ask in asked]
        with nobody_else_waits(here) as took:
            for thread in threads:
                thread.start()
            time.sleep(HANG_SECONDS * 2.5)
        assert len(took) > 20
        assert max(took) < PROMPT
        assert any(thread.is_alive() for thread in threads), ("it stood still", answers)
    finally:
        for pid in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(map(str, answers)) == sorted(map(str, expected))


def _serves(pid: str, mountpoint: Path) -> bool:
    """Whether the process serves that mount, rather than managing the server."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return bytes(mountpoint) in words and Path(f"/proc/{pid}/comm").read_text().startswith("cntrfs")
    except OSError:
        return False


def _answer(ask: Callable[[], object]) -> object:
    try:
        found = ask()
    except OSError as error:
        return error
    return found.st_mode if isinstance(found, os.stat_result) else found


@pytest.mark.skipif(bool(missing("pyfuse3")), reason=missing("pyfuse3") or "nothing is missing")
def test_the_reference_binding_waits_for_the_disk_and_lives() -> None:
    """It has a single thread: entries that the kernel caches for longer than hang_timeout are no sign of a hang."""
    with on_a_slow_disk("pyfuse3") as here, open(here.directory / "slow" / "file", "wb", buffering=0) as file:
        file.write(b"x")
        syncing = threading.Thread(target=os.fsync, args=(file.fileno(),))
        syncing.start()
        time.sleep(0.1)
        (here.directory / "new").write_bytes(b"x")
        syncing.join()


LEASE = """
import fcntl, os, signal, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
signal.signal(signal.SIGIO, lambda *_: None)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("leased", flush=True)
sys.stdin.read(1)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["write", "truncate", "open-truncating"])
def test_a_lease_that_is_not_given_up(how: str) -> None:
    """The process that opens waits, as it would without the mount; others do not."""
    with place("devfuse", options=("-o", f"hang_timeout={HANG_SECONDS}")) as here:
        (here.behind / "leased").write_bytes(b"x" * 100)
        command = [sys.executable, "-c", LEASE, str(here.behind / "leased")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"leased\n"

            def use() -> None:
                path = here.directory / "leased"
                if how == "truncate":
                    os.truncate(path, 5)
                else:
                    os.close(os.open(path, os.O_WRONLY | (os.O_TRUNC if how != "write" else 0)))

            user = threading.Thread(target=use)
            with nobody_else_waits(here) as took:
                user.start()
                time.sleep(HANG_SECONDS * 2)
                assert user.is_alive(), "the lease was not waited for"
                holder.stdin.write(b"g")
                holder.stdin.flush()
                user.join(20)
                assert not user.is_alive()
            assert max(took) < PROMPT
            holder.stdin.close()
        assert (here.behind / "leased").stat().st_size == {"write": 100, "truncate": 5}.get(how, 0)
        assert here.server is not None
        assert here.server.alive


def test_an_opener_that_waits_for_a_lease_is_killed() -> None:
    with place("devfuse") as here:
        (here.behind / "leased").write_bytes(b"x")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", LEASE, str(here.behind / "leased")], **pipes) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdout.readline()
            script = f"open({str(here.directory / 'leased')!r}, 'ab')"
            with subprocess.Popen(
                [sys.executable, "-c", f"print(flush=True); {script}"], stdout=subprocess.PIPE
            ) as opener:
                assert opener.stdout is not None
                opener.stdout.readline()
                time.sleep(0.5)
                assert opener.poll() is None
                began = time.monotonic()
                opener.kill()
                opener.wait(20)
            assert time.monotonic() - began < 5
            holder.stdin.close()


def test_a_stopped_server_is_ended() -> None:
    with place("devfuse", options=("-o", "hang_timeout=5")) as here:
        assert here.server is not None
        wait_until(lambda: len(here.server.processes()) > 1, "the server's process", 10)
        (here.directory / "before").touch()
        serving = here.server.processes()[1]
        os.kill(serving, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"\[Errno"):
            (here.directory / "new").write_bytes(b"x")
        assert time.monotonic() - began < 10
        wait_until(lambda: not here.server.alive, "the manager to end it", 10)


DEADLOCKED = """
import sys, threading
from cntr.cntrfs.__main__ import main
from cntr.cntrfs.core import Core
lock = threading.Lock()
lock.acquire()
readlink = Core.readlink
Core.readlink = lambda self, nodeid: lock.acquire() and readlink(self, nodeid)
sys.exit(main(sys.argv[1:]))
"""


def test_a_deadlocked_server_is_ended() -> None:
    argv = (sys.executable, "-c", DEADLOCKED, "{source}", "{mountpoint}", "--foreground", "-o", "hang_timeout=1")
    with place("devfuse", argv=argv) as here:
        (here.behind / "link").symlink_to("nowhere")
        with pytest.raises(OSError, match=r"\[Errno"):
            os.readlink(here.directory / "link")
        assert here.server is not None
        wait_until(lambda: not here.server.alive, "the manager to end it", 10)


def test_a_lock_that_is_held_for_long_is_no_hang() -> None:
    with place("devfuse", options=("-o", f"hang_timeout={HANG_SECONDS}")) as here:
        (here.behind / "f").touch()
        with open(here.behind / "f") as holder, open(here.directory / "f") as waiter:
            fcntl.flock(holder, fcntl.LOCK_EX)
            waiting = threading.Thread(target=fcntl.flock, args=(waiter, fcntl.LOCK_EX))
            waiting.start()
            time.sleep(HANG_SECONDS * 3)
            assert waiting.is_alive()
            fcntl.flock(holder, fcntl.LOCK_UN)
            waiting.join(10)
            assert not waiting.is_alive()
