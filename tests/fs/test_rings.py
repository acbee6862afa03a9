"""FUSE over io_uring: waiting requests block no others, what is unavailable is done without, and
nothing is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cntr.cntrfs.core import Core
from cntr.cntrfs.devfuse import rings, wire
from cntr.cntrfs.devfuse.session import FuseSession
from cntr.cntrfs.heartbeat import Heartbeat
from cntr.cntrfs.options import Options
from cntr.cntrfs.watchdog import open_control
from cntr.linux import file_syscalls, io_uring
from testkit.servers import Server, TreeUnderTest, is_mountpoint, missing, place
from testkit.waiting import wait_until

NAME = "devfuse-io_uring"
offered = pytest.mark.skipif(bool(missing(NAME)), reason=missing(NAME) or "nothing is missing")
WAITERS = 40  # far more than a queue has entries
WAITING = f"""
import fcntl, os, sys, threading
def wait():
    os.sched_setaffinity(0, [0])
    fd = os.open(sys.argv[1], os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)
    except OSError:
        pass
threads = [threading.Thread(target=wait) for _ in range({WAITERS})]
for thread in threads: thread.start()
"""


@pytest.fixture
def here() -> Iterator[TreeUnderTest]:
    with place(NAME, options=("-o", "hang_timeout=10")) as made:
        yield made


@contextlib.contextmanager
def on_the_first_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [0])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def asleep_for_an_answer(pid: int) -> int:
    """The number of the process's threads that wait for a FUSE server."""
    places = [Path(f"/proc/{pid}/task/{tid}/wchan").read_text() for tid in os.listdir(f"/proc/{pid}/task")]
    return sum(place.startswith("request_wait_answer") for place in places)


@contextlib.contextmanager
def waiters(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose threads wait for a lock on the file; all requests come from the first processor."""
    with subprocess.Popen([sys.executable, "-c", WAITING, file]) as process:
        try:
            wait_until(lambda: asleep_for_an_answer(process.pid) == WAITERS, "all to wait for the lock", 60)
            yield process
        finally:
            process.kill()


def server_of(here: TreeUnderTest) -> int:
    """The pid of the serving process."""
    assert here.server is not None
    return next(pid for pid in here.server.processes() if Path(f"/proc/{pid}/comm").read_text() == "cntrfs\n")


@offered
def test_what_waits_for_a_lock_leaves_its_processor_to_others(here: TreeUnderTest) -> None:
    """A request occupies an entry until it is answered: with four entries, four waiters would
    occupy the processor's queue.
    """
    (here.behind / "locked").touch()
    with open(here.directory / "locked", "r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        before = resident(server_of(here))
        with waiters(here.directory / "locked") as process:
            with on_the_first_processor():
                for number in range(rings.DEPTH * 2):
                    (here.directory / f"made{number}").write_bytes(b"x")
            assert resident(server_of(here)) - before < WAITERS * (32 << 10) + (2 << 20)
            fcntl.flock(holder, fcntl.LOCK_UN)
            assert process.wait(30) == 0  # each got it in turn


@offered
def test_who_waits_for_a_lock_can_be_killed(here: TreeUnderTest) -> None:
    (here.behind / "locked").touch()
    with open(here.directory / "locked", "r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with waiters(here.directory / "locked") as process:
            process.kill()
            assert process.wait(30) == -signal.SIGKILL


def resident(pid: int) -> int:
    """The resident set in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@offered
def test_large_requests_leave_bounded_memory() -> None:
    """However many clients read at once: buffers that replace occupied entries are freed again."""
    with place(NAME, options=("-o", "no_passthrough,cache=none")) as here:
        (here.behind / "large").write_bytes(os.urandom(16 << 20))
        pid = server_of(here)
        before = resident(pid)

        def read() -> None:
            with open(here.directory / "large", "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while file.read(1 << 20):
                    pass

        readers = [threading.Thread(target=read) for _ in range(24)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        os.stat(here.directory)
        # 40 MiB for the workers' own, and what malloc retains.
        bound = rings.possible_processors() * rings.DEPTH * (1 << 20) + (40 << 20)
        assert resident(pid) - before < bound


@offered
@pytest.mark.parametrize("how", ["killed", "stopped", "aborted", "detached"])
def test_the_end_frees_every_client(how: str) -> None:
    """Waiting clients get an error, and neither a mount nor a process is left."""
    with place(NAME, options=("-o", "hang_timeout=2")) as here:
        (here.behind / "locked").touch()
        server = here.server
        assert server is not None
        holder = os.open(here.directory / "locked", os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        processes = server.processes()
        with waiters(here.directory / "locked") as process:
            if how == "detached":
                process.kill()  # an unmounted tree lives on while it is in use
                server.detach()
            elif how == "aborted":
                abort(os.stat(here.directory).st_dev)
            else:
                os.kill(server_of(here), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
                with contextlib.suppress(OSError):
                    os.stat(here.directory / "asked")  # a stopped server is noticed at the next request
            process.wait(30)
        with contextlib.suppress(OSError):
            os.close(holder)  # this makes a request, too
        assert server.process is not None
        server.process.wait(30)
        assert not is_mountpoint(server.mountpoint)
        wait_until(
            lambda: not [pid for pid in processes if os.path.exists(f"/proc/{pid}")], "the server's processes", 10
        )


def abort(device: int) -> None:
    """Abort the connection through the fusectl filesystem."""
    control = open_control(device)
    abort = os.open("abort", os.O_WRONLY, dir_fd=control)
    os.write(abort, b"1")
    os.close(abort)
    os.close(control)


def test_without_it_a_mount_is_as_ever(tmp_path: Path) -> None:
    """Only one processor is allowed here: whatever the kernel offers, requests come by /dev/fuse,
    and the log says so.
    """
    if missing("devfuse"):
        pytest.skip(missing("devfuse"))
    for name in ("source", "mount"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_text("content")
    server = Server("devfuse", tmp_path / "source", tmp_path / "mount", tmp_path / "log", options=("-o", "io_uring"))
    with on_the_first_processor():
        server.start()
    try:
        assert (tmp_path / "mount" / "file").read_text() == "content"
        assert "requests come by /dev/fuse, not io_uring: " in server.log_end()
    finally:
        assert not server.stop()


class Refused:
    """A ring that cannot be created."""

    def __init__(self) -> None:
        raise PermissionError(errno.EPERM, "io_uring_setup: Operation not permitted")


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[FuseSession]:
    """A session whose kernel offers everything and never sends anything."""
    options = Options(invalidate=False, max_fds=8)
    options.io_uring = True
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    flags = wire.INIT_EXT | wire.OVER_IO_URING
    ours.send(wire.IN_HEADER.pack(104, wire.INIT, 2, 0, 0, 0, 0, 0) + init_body(flags))
    umask = os.umask(0)  # a server works without it
    made = FuseSession(theirs.detach(), Core(os.open(tmp_path, os.O_PATH), options), Heartbeat(), lambda: None)
    yield made
    ours.close()
    made.close()
    made.core.close()
    os.umask(umask)


def init_body(flags: int) -> bytes:
    return wire.INIT_IN.pack(7, 45, 131072, flags & 0xFFFFFFFF) + (flags >> 32).to_bytes(44 + 4, "little")


def agreed(serving: FuseSession, offers: int = wire.OVER_IO_URING) -> bool:
    answer = wire.INIT_OUT.unpack(serving.init(memoryview(init_body(wire.INIT_EXT | offers))))
    return bool(answer[10] << 32 & wire.OVER_IO_URING)


@pytest.mark.parametrize("lacking", ["offer", "processors", "few", "unknown", "ring", "thread"])
def test_what_is_lacking_is_done_without(
    lacking: str, serving: FuseSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of the log says so; the attempt leaves no thread and no fd."""
    caplog.set_level("INFO", "cntr.cntrfs")
    monkeypatch.setattr(rings.os, "sched_getaffinity", lambda pid: {0} if lacking == "processors" else {0, 1})
    queues = {"few": rings.MOST_QUEUES + 1, "unknown": 0}.get(lacking, 2)
    monkeypatch.setattr(rings, "possible_processors", lambda: queues)
    if lacking == "ring":
        monkeypatch.setattr(rings.io_uring, "Ring", Refused)
    if lacking == "thread":
        monkeypatch.setattr(rings.threading.Thread, "start", _no_more)
    open_before, threads = os.listdir("/proc/self/fd"), threading.active_count()
    assert not agreed(serving, 0 if lacking == "offer" else wire.OVER_IO_URING)
    assert serving.rings is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("requests come by /dev/fuse, not io_uring: ")
    assert os.listdir("/proc/self/fd") == open_before
    assert threading.active_count() == threads


def _no_more(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_an_end_before_the_first_request_leaves_nothing(
    serving: FuseSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """INIT succeeded, and then no entry is taken: a session that nobody could use ends at once."""
    try:
        rings.try_ring()
    except OSError as error:
        pytest.skip(f"io_uring is refused here: {error.strerror}")
    monkeypatch.setattr(rings.os, "sched_getaffinity", lambda pid: {0, 1})
    open_before, threads = os.listdir("/proc/self/fd"), threading.active_count()
    serving.run()  # it returns; the session's fd is a socket, which does not support the command
    assert serving.rings is not None
    assert serving.rings.is_broken
    assert "FUSE_IO_URING_CMD_REGISTER" in caplog.text
    serving.rings.close()
    os.set_blocking(serving.fd, True)
    assert os.listdir("/proc/self/fd") == open_before
    assert threading.active_count() == threads


@pytest.mark.parametrize("queues", [1, 2, 7, rings.MOST_QUEUES])
def test_the_buffers_together(queues: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "possible_processors", lambda: queues)
    monkeypatch.setattr(rings, "Queue", lambda made, number: SimpleNamespace(begin=lambda: None))
    monkeypatch.setattr(rings.Rings, "_hear", lambda made: None)
    nothing: Any = None
    payload = rings.Rings(-1, nothing, nothing, nothing).payload
    assert payload % 4096 == 0
    assert 1 << 17 <= payload <= 1 << 20
    assert payload * rings.DEPTH * queues <= 64 << 20


@pytest.mark.parametrize(("text", "number"), [("0\n", 1), ("0-1\n", 2), ("0-3,8-11,15\n", 9), ("", 0), ("none", 0)])
def test_possible_processors(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings, "procfs", SimpleNamespace(read=lambda path: text))
    assert rings.possible_processors() == number


def test_an_interrupt_that_overtakes_its_request() -> None:
    """INTERRUPT comes by /dev/fuse: a bounded number of them is kept until their requests arrive and wait."""
    nothing: Any = None
    made: Any = SimpleNamespace(_early={}, entries={8: nothing})
    for unique in range(0, 2048 * 2, 2):
        rings.Rings.interrupted(made, unique + 2)
    assert len(made._early) == 1024
    rings.Rings.interrupted(made, 8)
    assert rings.Rings.was_interrupted(made, 8)
    assert not rings.Rings.was_interrupted(made, 10)


def test_a_ring_completes_a_read() -> None:
    try:
        ring = io_uring.Ring()
    except OSError as error:
        pytest.skip(f"io_uring is refused here: {error.strerror}")
    event, heard = file_syscalls.eventfd(), io_uring.anonymous(8)
    os.set_blocking(event, True)
    try:
        for round_ in range(200):  # past the end of each queue
            ring.prepare(io_uring.IORING_OP_READ, event, io_uring.buffer_address(heard), 8, round_)
            ring.enter(0)
            assert ring.completions() == []
            os.write(event, file_syscalls.EVENT)
            ring.enter(1)
            assert ring.completions() == [(round_, 8)]
        for data in range(150):  # more than fit into the submission queue
            ring.prepare(io_uring.IORING_OP_READ, -1, io_uring.buffer_address(heard), 8, data)
        ring.enter(1)
        assert ring.completions() == [(data, -errno.EBADF) for data in range(150)]
    finally:
        ring.close()
        os.close(event)
