"""A backing that never answers, like NFS without its server: whatever is asked, only those who ask wait."""

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

from testkit.servers import Server, TreeUnderTest, missing, open_to_others, place
from testkit.waiting import wait_until

from .test_slow import nobody_else_waits

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
HANG_SECONDS = 1
PROMPT = 1.0  # seconds


@contextlib.contextmanager
def below(options: tuple[str, ...] = ()) -> Iterator[tuple[TreeUnderTest, Server]]:
    """A place whose directory ``hung`` is served by another server; and that server."""
    with place("devfuse", options=("-o", f"hang_timeout={HANG_SECONDS}", *options)) as outer:
        for name in ("disk", "source/hung"):
            (outer.base / name).mkdir()
        open_to_others(outer.base)
        inner = Server("devfuse", outer.base / "disk", outer.behind / "hung", outer.base / "inner-log")
        inner.start()
        try:
            yield outer, inner
            assert outer.server is not None
            assert outer.server.alive, outer.server.log_end()
            assert not outer.server.new_suspicious_lines()
        finally:
            problem = outer.server.stop() if outer.server is not None else ""
            problem += inner.stop()
        assert not problem


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    """All of its processes are stopped, including the one that would notice a hang."""
    pids = server.processes()
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _lock(fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX)


def _calls(top: Path, fd: int, fd_read: int) -> dict[str, Callable[[], object]]:
    """Calls on the hung directory TOP; fd, fd_read: files open there for writing and for reading."""
    return {
        "list": lambda: sorted(os.listdir(top / "full")),
        "scan": lambda: len([entry.stat() for entry in os.scandir(top / "full")]),
        "mkdir": lambda: (top / "made").mkdir(),
        "rmdir": lambda: (top / "empty").rmdir(),
        "create": lambda: (top / "new").write_bytes(b"new"),
        "mkfifo": lambda: os.mkfifo(top / "fifo"),
        "unlink": lambda: (top / "gone").unlink(),
        "rename": lambda: (top / "old").rename(top / "renamed"),
        "link": lambda: os.link(top / "file", top / "linked"),
        "symlink": lambda: (top / "symlink").symlink_to("file"),
        "readlink": lambda: os.readlink(top / "points"),
        "chmod": lambda: (top / "chmod").chmod(0o600),
        "chown": lambda: os.chown(top / "chown", 1, 1),
        "utime": lambda: os.utime(top / "utime", (1, 1)),
        "truncate": lambda: os.truncate(top / "truncate", 1),
        "ftruncate": lambda: os.ftruncate(fd, 3),
        "statvfs": lambda: bool(os.statvfs(top).f_blocks),
        "setxattr": lambda: os.setxattr(top / "file", "user.a", b"1"),
        "getxattr": lambda: os.getxattr(top / "marked", "user.b"),
        "listxattr": lambda: os.listxattr(top / "marked"),
        "removexattr": lambda: os.removexattr(top / "unmarked", "user.c"),
        "read": lambda: (top / "file").read_bytes(),
        "fsync": lambda: os.fsync(fd),
        "lockf": lambda: _lock(fd),
        "flock": lambda: fcntl.flock(fd_read, fcntl.LOCK_SH),
        "lseek": lambda: os.lseek(fd_read, 0, os.SEEK_DATA),
        "fallocate": lambda: os.posix_fallocate(fd, 0, 10),
        "fstat": lambda: os.fstat(fd_read).st_size,
        "close": lambda: os.close(os.dup(fd)),
    }


def _fill(top: Path) -> None:
    (top / "full").mkdir()
    for number in range(300):
        (top / "full" / f"file{number}").touch()
    for name in ("file", "gone", "old", "chmod", "chown", "utime", "truncate", "marked", "unmarked", "open"):
        (top / name).write_bytes(b"content")
    (top / "empty").mkdir()
    (top / "points").symlink_to("file")
    os.setxattr(top / "marked", "user.b", b"2")
    os.setxattr(top / "unmarked", "user.c", b"3")


def _answer(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return error


@pytest.mark.parametrize("option", ["passthrough", "no_passthrough", "cache=none"])
def test_whatever_is_asked(option: str, tmp_path: Path) -> None:
    """All calls at once, by more threads than may wait for one disk; afterwards their results are
    those of a plain directory.
    """
    _fill(tmp_path)
    with open(tmp_path / "open", "r+b", 0) as file, open(tmp_path / "file", "rb", 0) as reading:
        expected = {name: _answer(call) for name, call in _calls(tmp_path, file.fileno(), reading.fileno()).items()}
    with below((f"-o{option}",)) as (outer, inner), contextlib.ExitStack() as stack:
        _fill(outer.base / "disk")
        top = outer.directory / "hung"
        file = stack.enter_context(open(top / "open", "r+b", 0))
        reading = stack.enter_context(open(top / "file", "rb", 0))
        calls = _calls(top, file.fileno(), reading.fileno())
        answers: dict[str, object] = {}

        def ask(name: str) -> None:
            answers[name] = _answer(calls[name])

        threads = [threading.Thread(target=ask, args=(name,)) for name in calls]
        time.sleep(1.1)  # what the kernel caches of an unwatched mount has expired by then
        with stopped(inner), nobody_else_waits(outer) as took:
            for thread in threads:
                thread.start()
            time.sleep(HANG_SECONDS * 2.5)
            waiting = [thread for thread in threads if thread.is_alive()]
        assert len(waiting) > len(threads) / 2, ("it stood still", answers)
        assert len(took) > 10
        assert max(took) < PROMPT
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert {name: str(answers[name]).replace(str(top), "") for name in calls} == {
            name: str(expected[name]).replace(str(tmp_path), "") for name in calls
        }
        assert sorted(os.listdir(top)) == sorted(os.listdir(outer.base / "disk"))


def test_a_lock_there_is_waited_for(tmp_path: Path) -> None:
    """Between two clients of the mount, and between a client and a process on the backing file; a
    killed waiter exits.
    """
    with below() as (outer, _):
        (outer.base / "disk" / "file").touch()
        path = outer.directory / "hung" / "file"
        for other in (path, outer.behind / "hung" / "file"):
            with open(other, "r+b") as holder, open(path, "r+b") as waiter:
                for take in (fcntl.flock, lambda file, how: fcntl.fcntl(file, _OFD[how], _WHOLE[how])):
                    take(holder, fcntl.LOCK_EX)
                    got = threading.Event()

                    def wait(take=take, waiter=waiter, got=got) -> None:
                        take(waiter, fcntl.LOCK_EX)
                        got.set()

                    thread = threading.Thread(target=wait)
                    thread.start()
                    assert not got.wait(0.3)
                    take(holder, fcntl.LOCK_UN)
                    wait_until(got.is_set, "the lock", 10)
                    thread.join()
                    take(waiter, fcntl.LOCK_UN)
        with open(path, "r+b") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            script = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
            with subprocess.Popen([sys.executable, "-c", script, str(path)]) as killed:
                waits = Path(f"/proc/{killed.pid}/wchan")
                wait_until(lambda: "fuse" in waits.read_text() or "request_wait" in waits.read_text(), "the waiter", 10)
                killed.kill()
                assert killed.wait(10) == -signal.SIGKILL


F_OFD_SETLKW = 38
_OFD = dict.fromkeys((fcntl.LOCK_EX, fcntl.LOCK_UN), F_OFD_SETLKW)
_WHOLE = {
    fcntl.LOCK_EX: fcntl.F_WRLCK.to_bytes(2, "little") + bytes(30),
    fcntl.LOCK_UN: fcntl.F_UNLCK.to_bytes(2, "little") + bytes(30),
}


def test_the_mount_ends_beside_it() -> None:
    """SIGTERM to the server ends the mount, although some calls are never answered."""
    with below() as (outer, inner):
        assert outer.server is not None
        with stopped(inner):
            asker = threading.Thread(target=lambda: _answer(lambda: os.listdir(outer.directory / "hung")), daemon=True)
            asker.start()
            time.sleep(0.3)
            began = time.monotonic()
            problem = outer.server.stop()
            assert not problem
            assert time.monotonic() - began < 15
        asker.join(20)
        outer.server.start()


def test_few_fds_are_enough(tmp_path: Path) -> None:
    """If none is free, the workers' requests are restarted once the server has closed those that it can reopen."""
    (tmp_path / "disk").mkdir()
    for name in ("below", "mount"):
        (tmp_path / name).mkdir()
    for number in range(100):
        (tmp_path / "disk" / f"{number}").write_text(f"{number}")
    inner = Server("devfuse", tmp_path / "disk", tmp_path / "below", tmp_path / "log-below")
    inner.start()
    argv = ("prlimit", "--nofile=64", sys.executable, "-m", "cntr.cntrfs", "{source}", "{mountpoint}", "--foreground")
    outer = Server("devfuse", tmp_path / "below", tmp_path / "mount", tmp_path / "log", argv)
    try:
        outer.start()
        failed: list[object] = []

        def make(path: Path) -> None:
            path.touch()
            path.rename(f"{path}-renamed")
            os.unlink(f"{path}-renamed")

        def use(writer: int) -> None:
            paths = [tmp_path / "mount" / f"new{writer}-{number}" for number in range(30)]
            failed.extend(answer for answer in (_answer(lambda path=path: make(path)) for path in paths) if answer)

        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(tmp_path / "mount" / f"{number}")) for number in range(20)]
            writers = [threading.Thread(target=use, args=(number,)) for number in range(4)]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            assert [file.read() for file in files] == [f"{number}" for number in range(20)]
        assert not failed
        assert sorted(os.listdir(tmp_path / "mount")) == sorted(os.listdir(tmp_path / "disk"))
        assert not outer.new_suspicious_lines()
    finally:
        problem = outer.stop() + inner.stop()
    assert not problem
