"""The end of the watch on changes behind the mount: on request, and when its helper is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cntr.cntrfs.devfuse import session, watch, wire
from cntr.cntrfs.options import Options
from cntr.linux import fanotify
from testkit.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify's file handles need CAP_SYS_ADMIN")

ROOT = SimpleNamespace(mount=SimpleNamespace(mnt_id=0))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes whose attributes the kernel was told to invalidate."""
    nodes: list[int] = []
    monkeypatch.setattr(watch, "notify", lambda fd, code, payload: nodes.append(int.from_bytes(payload[:8], "little")))
    return nodes


@pytest.fixture
def watching() -> Iterator[Any]:
    """A watch whose table knows a hundred nodes, none of them a directory."""
    table = SimpleNamespace(
        mounts=SimpleNamespace(all=[], on_new_mount=None), directories=list, ids=lambda: iter(range(100)), root=ROOT
    )
    fd = os.open("/dev/null", os.O_RDWR)
    made = watch.Watch(fd, SimpleNamespace(nodes=table), expire_only=True)  # type: ignore[arg-type]
    yield made
    if not made._is_closing:
        made.close()
    os.close(fd)


def test_closing_tells_the_kernel_nothing(watching: Any, told: list[int]) -> None:
    """The connection's fd is closed next, and its number may soon belong to another file."""
    watching.close()
    assert not watching._flusher.is_alive()
    assert told == []


def test_a_lost_helper_invalidates_everything(watching: Any, told: list[int]) -> None:
    os.kill(watching.pid, signal.SIGKILL)
    wait_until(lambda: not watching._flusher.is_alive())
    assert told == list(range(100))


def test_closing_ends_a_flush_under_way(watching: Any, told: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "notify", lambda *_: (told.append(0), time.sleep(0.05)))
    os.kill(watching.pid, signal.SIGKILL)
    wait_until(lambda: bool(told))
    watching.close()
    assert not watching._flusher.is_alive()
    assert len(told) < 100


@pytest.mark.parametrize("what", ["threading.Thread.start", "os.fork"])
def test_a_watch_that_cannot_begin_leaves_nothing(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def refuse(*_: object) -> None:
        raise (OSError if what == "os.fork" else RuntimeError)("no more")

    open_before, threads = os.listdir("/proc/self/fd"), threading.active_count()
    monkeypatch.setattr(what, refuse)
    with pytest.raises((OSError, RuntimeError), match="no more"):
        watch.Watch(-1, SimpleNamespace(nodes=SimpleNamespace(root=ROOT)), expire_only=True)  # type: ignore[arg-type]
    assert os.listdir("/proc/self/fd") == open_before
    assert threading.active_count() == threads


@pytest.mark.parametrize("refusal", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_a_session_works_where_nothing_can_be_watched(monkeypatch: pytest.MonkeyPatch, refusal: Exception) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(session, "Watch", refuse)
    options = Options(keep_mounts=True)
    connection = SimpleNamespace(flags=wire.HAS_EXPIRE_ONLY)
    core = SimpleNamespace(options=options, credentials=SimpleNamespace(raised=contextlib.nullcontext))
    serving: Any = SimpleNamespace(core=core, connection=connection, fd=-1, watch=None)
    session.FuseSession._watch(serving)
    assert serving.watch is None


def test_events_that_come_with_the_news_of_their_mount_are_not_missed(told: list[int]) -> None:
    """A filesystem appears in the tree a second time, and is changed by one of the two paths before
    the helper looks.
    """
    group, kernel = os.pipe()
    helpers, servers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        table: Any = SimpleNamespace(fd=-1)
        helper = watch.Helper(-1, group, helpers, os.getpid(), True, table)
        for base in (0, 1 << 40):
            servers.send(watch._MOUNT.pack(b"filesys1", base, 0, 0))
        handle = (7).to_bytes(4, "little") + bytes(4)  # inode, generation
        info = watch._INFO.pack(watch._INFO_FID, watch._INFO.size + len(handle), b"filesys1", len(handle), 1) + handle
        size = watch._METADATA.size
        os.write(
            kernel, watch._METADATA.pack(size + len(info), 3, 0, size, fanotify.FAN_ATTRIB, -1, os.getpid()) + info
        )
        helper.read_events()
        assert told == [7, 1 << 40 | 7]
    finally:
        for fd in (group, kernel):
            os.close(fd)
        helpers.close()
        servers.close()
