"""Changes of which no event comes by itself: by another path in the tree, in another namespace, during an answer."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cntr.cntrfs import probe
from cntr.cntrfs.devfuse import watch, wire
from cntr.cntrfs.devfuse.mount_table import MountTable
from cntr.cntrfs.devfuse.silent import SilentMounts
from cntr.cntrfs.node import BackingMount
from cntr.linux import fanotify, file_syscalls, syscalls
from testkit.servers import TreeUnderTest, missing, place, served
from testkit.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")


@pytest.fixture(params=["devfuse", "devfuse-io_uring", "pyfuse3"])
def twice(request: pytest.FixtureRequest) -> Iterator[TreeUnderTest]:
    """A tree in which ``one`` also appears as ``two``."""
    if missing(request.param):
        pytest.skip(missing(request.param))
    with place(request.param) as here:
        one, two = here.behind / "one", here.behind / "two"
        one.mkdir()
        two.mkdir()
        syscalls.mount(str(one), str(two), None, syscalls.MS_BIND)
        try:
            yield here
        finally:
            syscalls.umount(str(two), syscalls.MNT_DETACH)


def test_a_filesystem_that_is_in_the_tree_twice(twice: TreeUnderTest) -> None:
    """What the mount itself changes by one path is seen by the other."""
    one, two = twice.directory / "one", twice.directory / "two"

    def agree(names: set[str]) -> bool:
        try:
            modes = {name: os.stat(two / name).st_mode for name in os.listdir(two)}
        except FileNotFoundError:  # a name disappeared between the two calls
            return False
        return modes == {name: os.stat(one / name).st_mode for name in names} and [
            (two / name).exists() for name in ("a", "b")
        ] == [name in names for name in ("a", "b")]

    assert agree(set())
    (one / "a").touch()
    wait_until(lambda: agree({"a"}), "a file that was made", 5)
    (one / "a").chmod(0o600)
    wait_until(lambda: agree({"a"}), "a mode", 5)
    (one / "a").rename(one / "b")
    wait_until(lambda: agree({"b"}), "a new name", 5)
    (one / "b").unlink()
    wait_until(lambda: agree(set()), "a removal", 5)


def _pass_on(written: Path, read: Path, data: bytes) -> None:
    written.write_bytes(data)
    wait_until(lambda: read.read_bytes() == data, "what was written by the other name", 5)
    assert read.stat().st_size == len(data)


@pytest.mark.parametrize("words", [(), ("-o", "no_passthrough")], ids=["passthrough", "no_passthrough"])
@pytest.mark.parametrize("binding", ["devfuse", "devfuse-io_uring", "pyfuse3"])
def test_a_file_that_is_bound_over_another_one(binding: str, words: tuple[str, ...]) -> None:
    """What is written by one of its names is read by the other, however late it was bound."""
    if missing(binding):
        pytest.skip(missing(binding))
    with place(binding, options=words) as here:
        one, two = (here.directory / name for name in ("one", "two"))
        (here.behind / "one").write_bytes(b"1")
        (here.behind / "two").write_bytes(b"22")
        assert (one.read_bytes(), two.read_bytes()) == (b"1", b"22")
        syscalls.mount(str(here.behind / "one"), str(here.behind / "two"), None, syscalls.MS_BIND)
        try:
            wait_until(lambda: two.read_bytes() == b"1", "the bound file", 5)
            _pass_on(two, one, b"333")
            _pass_on(two, one, b"4444")
            _pass_on(one, two, b"55555")
            _pass_on(two, one, b"666666")
        finally:
            syscalls.umount(str(here.behind / "two"), syscalls.MNT_DETACH)


def test_clients_writes_by_passthrough_are_no_news() -> None:
    """The kernel made these writes itself: the client need not ask again for attributes of a file
    it opened for writing.
    """
    try:
        probe.passthrough()
    except OSError as error:
        pytest.skip(f"the kernel has no passthrough: {error.strerror}")
    with place("devfuse", options=("-o", "trace")) as here:
        file, other = here.directory / "file", here.directory / "other"
        (here.behind / "other").touch()
        file.write_bytes(b"x")
        assert (file.stat().st_size, other.stat().st_size) == (1, 0)
        os.close(os.open(file, os.O_WRONLY))
        (here.behind / "other").write_bytes(b"later")  # events come in their order
        wait_until(lambda: other.stat().st_size == 5, "what is written behind the mount", 5)
        assert here.server is not None
        before = here.server.log.read_bytes().count(b"GETATTR")
        assert file.stat().st_size == 1
        assert here.server.log.read_bytes().count(b"GETATTR") == before
        (here.behind / "file").write_bytes(b"behind")
        wait_until(lambda: file.stat().st_size == 6, "what is written to it behind the mount", 5)


def test_a_silent_mount_reports_no_writes_unless_its_filesystem_is_in_the_tree_twice(tmp_path: Path) -> None:
    syscalls.mount("tmpfs", str(tmp_path), "tmpfs", 0)  # nobody else writes there
    (tmp_path / "file").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    group = fanotify.new_naming_group()
    silent = SilentMounts(group)

    def reported(directory: int) -> bool:
        file = os.open("file", os.O_WRONLY, dir_fd=directory)
        os.write(file, b"x")
        os.close(file)
        try:
            return bool(os.read(group, 4096))
        except BlockingIOError:
            return False

    try:
        fanotify.mark_filesystem(group, fanotify.FAN_MODIFY | fanotify.FAN_CLOSE_WRITE, fd)
        first, second = (BackingMount(number, 0, 0, number) for number in (0, 1))
        first.fd = second.fd = fd
        silent.add(first, b"filesys1")
        assert not reported(first.silent_fd)
        assert reported(fd)
        kept = os.dup(first.silent_fd)
        silent.add(second, b"filesys1")
        assert (first.silent_fd, second.silent_fd) == (-1, -1)
        assert reported(kept)
        os.close(kept)
    finally:
        silent.close()
        os.close(group)
        os.close(fd)
        syscalls.umount(str(tmp_path), syscalls.MNT_DETACH)


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_mounts_of_another_namespace(binding: str, tmp_path: Path) -> None:
    """A container mounts and unmounts in its own mount namespace, which is not the server's."""
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    script = f'read x; mount -t tmpfs data "{data}/below"; touch "{data}/below/over"; echo; read x; umount -l "{data}/below"; echo; read x'
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        wait_until(lambda: Path(f"/proc/{container.pid}/comm").read_text() == "sh\n", "the container", 10)
        base = tmp_path / "mounted"
        (base / "mount").mkdir(parents=True)
        (base / "source").symlink_to(f"/proc/{container.pid}/root/{data}")
        try:
            with served(binding, base) as mount:
                for wanted in (["over"], []):
                    assert os.listdir(mount / "below") != wanted
                    container.stdin.write(b"\n")
                    container.stdin.flush()
                    container.stdout.readline()
                    wait_until(lambda wanted=wanted: os.listdir(mount / "below") == wanted, "what was mounted there", 5)  # type: ignore[misc]
        finally:
            container.kill()


def test_a_name_that_moves_while_it_is_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes the old answer after the expiry, and would keep it for a day, so it is sent another one."""
    told: list[bytes] = []
    monkeypatch.setattr(
        watch, "notify", lambda fd, code, payload: told.append(payload) if code == wire.NOTIFY_INVAL_ENTRY else None
    )
    monkeypatch.setattr(watch, "_SETTLED", 0.05)
    table: Any = SimpleNamespace()
    helper = watch.Helper(-1, -1, SimpleNamespace(), 1, expire_only=True, mount_table=table)  # type: ignore[arg-type]
    helper.mounts[b"filesys1"] = [(0, 0, 0, -1)]
    handle = struct.pack("=II", 77, 1)
    info = struct.pack("=BxH8sIi", 2, 32, b"filesys1", len(handle), 1) + handle + b"name\0\0\0\0"
    for mask, times in ((fanotify.FAN_MOVED_TO, 2), (fanotify.FAN_CREATE, 1)):
        told.clear()
        helper.event(mask, info, set(), is_own=False)
        helper.send_pending()
        assert len(told) == 1
        time.sleep(0.06)
        helper.send_pending()
        assert len(told) == times
        assert all(b"name" in payload and payload[:8] == struct.pack("=Q", 77) for payload in told)


def test_a_mount_table_is_of_whoever_has_the_mount() -> None:
    root = os.open("/", os.O_PATH)
    table = MountTable(file_syscalls.statx(root).mnt_id)
    os.close(root)
    try:
        assert b"/" in table.points
        assert list(table.changed()) == []
        assert os.fstat(table.root_fd).st_ino == os.stat("/").st_ino
    finally:
        table.close()
