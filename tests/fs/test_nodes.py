"""The node table: identity, reopening, bounded fds, and files that change behind it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.cntrfs.node import FileId, Node
from cntr.cntrfs.nodes import NodeTable
from cntr.linux import file_syscalls
from testkit import loops

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at(2) needs CAP_DAC_READ_SEARCH")


@pytest.fixture(params=["handles", "names"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeTable]:
    """A table that reopens by file handle, and one that can only reopen by parent and name."""
    made = NodeTable(os.open(tmp_path, os.O_PATH), max_fds=3)
    if request.param == "names":
        for mount in made.mounts.all:
            mount.handles = mount.any_generation = False
    elif not made.mounts.all[0].handles:
        pytest.skip(f"no file handles on the filesystem of {tmp_path}")
    yield made
    made.close()


def see(table: NodeTable, name: str, parent: Node | None = None) -> Node:
    parent = parent or table.root
    fd = table.fds.fd(parent)
    node = table.see(file_syscalls.statx(fd, name.encode()), parent, fd, name.encode())
    node.lookups += 1
    return node


def identity(fd: int) -> FileId:
    found = file_syscalls.statx(fd)
    return FileId(found.mnt_id, os.makedev(found.dev_major, found.dev_minor), found.ino)


def test_a_file_is_one_node_under_all_its_names(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.link(tmp_path / "a", tmp_path / "b")
    assert see(table, "a") is see(table, "b")


def test_fd_leads_to_the_file(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    node = see(table, "a")
    assert identity(table.fds.fd(node)) == node.id


def test_fds_are_bounded_and_reopened(table: NodeTable, tmp_path: Path) -> None:
    nodes = []
    for number in range(20):
        (tmp_path / str(number)).touch()
        nodes.append(see(table, str(number)))
    for node in nodes:
        table.fds.fd(node)
        table.trim()
    assert sum(node.fd >= 0 for node in nodes) <= 3
    for node in nodes:
        assert identity(table.fds.fd(node)) == node.id
        table.trim()


def test_the_table_of_fds_need_not_grow(tmp_path: Path) -> None:
    """Each doubling waits for an RCU grace period if there are threads: a cold tree took nearly
    twice as long to read.
    """
    pid = os.fork()  # the copied table is as large as needed for the open fds
    if pid == 0:
        with contextlib.suppress(BaseException):
            made = NodeTable(os.open(tmp_path, os.O_PATH), max_fds=600)
            lines = Path("/proc/self/status").read_text().splitlines()
            size = next(int(line.split()[1]) for line in lines if line.startswith("FDSize:"))
            os._exit(0 if size > made.fds.max_fds else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_deep_path_reopens(table: NodeTable, tmp_path: Path) -> None:
    node = table.root
    path = tmp_path
    for _ in range(50):
        path = path / "d"
        path.mkdir()
        node = see(table, "d", node)
        table.trim()
    for _ in range(5):
        table.fds.fd(see(table, "d"))
    assert identity(table.fds.fd(node)) == node.id


def test_renaming_a_parent_keeps_its_children(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "child").touch()
    parent = see(table, "old")
    child = see(table, "child", parent)
    for other in range(6):
        (tmp_path / str(other)).touch()
        table.fds.fd(see(table, str(other)))
    table.trim()
    os.rename(tmp_path / "old", tmp_path / "new")
    table.moved(parent, table.root, b"new")
    assert identity(table.fds.fd(child)) == child.id


def test_a_replaced_file_is_stale(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("first")
    node = see(table, "a")
    (tmp_path / "other").write_text("second")
    os.replace(tmp_path / "other", tmp_path / "a")
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        table.fds.fd(node)
    assert caught.value.errno == errno.ESTALE


def test_a_pinned_file_outlives_its_name(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kept")
    node = see(table, "a")
    table.fds.pin(node)
    os.unlink(tmp_path / "a")
    for number in range(6):
        (tmp_path / str(number)).touch()
        table.fds.fd(see(table, str(number)))
    table.trim()
    assert Path(f"/proc/self/fd/{table.fds.fd(node)}").read_text() == "kept"


def test_only_what_may_be_large_is_freed_elsewhere(table: NodeTable, tmp_path: Path) -> None:
    """A removed file that was small, and that nobody has opened since, is closed at once."""
    freed: list[str] = []
    table.fds.close_nameless = lambda fd: (freed.append(os.readlink(f"/proc/self/fd/{fd}")), os.close(fd))[1]
    for name in ("small", "large", "grown"):
        (tmp_path / name).touch()
        node = see(table, name)
        table.fds.pin(node, is_small=name != "large")
        if name == "grown":
            table.fds.may_grow(node)
        os.unlink(tmp_path / name)
        table.fds.close(node)
    assert freed == [f"{tmp_path}/large (deleted)", f"{tmp_path}/grown (deleted)"]


def test_forget_counts(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    node = see(table, "a")
    see(table, "a")
    table.forget(node.nodeid, 1)
    assert table.get(node.nodeid) is node
    table.forget(node.nodeid, 1)
    with pytest.raises(OSError, match="Stale"):
        table.get(node.nodeid)


def test_forget_never_takes_the_root(table: NodeTable) -> None:
    table.forget(1, 1 << 60)
    assert table.get(1) is table.root


def test_a_reused_inode_number_is_another_node(table: NodeTable, tmp_path: Path) -> None:
    for attempt in range(200):
        (tmp_path / "a").touch()
        first = see(table, "a")
        os.unlink(tmp_path / "a")
        (tmp_path / "a").touch()
        second = see(table, "a")
        assert first is not second
        if first.nodeid == second.nodeid:
            assert (first.generation, first.birth) != (second.generation, second.birth), attempt
            return
        os.unlink(tmp_path / "a")
    pytest.skip("the filesystem reused no inode number in 200 attempts")


def test_a_forgotten_node_comes_back_by_its_id(tmp_path: Path) -> None:
    table = NodeTable(os.open(tmp_path, os.O_PATH), max_fds=3)
    if not table.mounts.all[0].handles:
        pytest.skip(f"no file handles on the filesystem of {tmp_path}")
    (tmp_path / "a").touch()
    node = see(table, "a")
    table.forget(node.nodeid, 1)
    again = table.revive(node.nodeid)
    assert (again.nodeid, again.generation, again.id) == (node.nodeid, node.generation, node.id)
    table.forget(node.nodeid, 1)
    os.unlink(tmp_path / "a")
    with contextlib.suppress(OSError):  # ESTALE, unless another process on this filesystem has reused the inode number
        assert table.revive(node.nodeid).generation != node.generation
    table.close()


def test_no_fd_left_gives_up_cached_ones(table: NodeTable, tmp_path: Path) -> None:
    table.fds.max_fds = 1000
    for number in range(20):
        (tmp_path / str(number)).touch()
        table.fds.fd(see(table, str(number)))
    attempts = []

    def opener() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError(errno.EMFILE, "too many")
        return 7

    assert table.fds.retrying(opener) == 7
    assert len(table.fds.cached) <= 3


def test_a_generation_of_zero_is_one(tmp_path: Path) -> None:
    """mkfs.ext4 -d gives every file generation 0; if ours were another number, handles would be
    stale.

    The root of every ext4 has generation 0: the next file decides whether the others need be asked
    for theirs.
    """
    (tmp_path / "tree" / "directory").mkdir(parents=True)
    image, mountpoint = tmp_path / "image", tmp_path / "mount"
    mountpoint.mkdir()
    mkfs = ["mkfs.ext4", "-q", "-d", str(tmp_path / "tree"), str(image), "8M"]
    subprocess.run(mkfs, check=True)
    with loops.mounted(image, mountpoint):
        table = NodeTable(os.open(mountpoint, os.O_PATH), max_fds=1)
        try:
            node, other = see(table, "directory"), see(table, "lost+found")
            for _ in range(3):
                assert identity(table.fds.fd(node)) == node.id
                assert identity(table.fds.fd(other)) == other.id
                table.trim()
            assert table.root.mount.any_generation is None
            known = node.generation
            (mountpoint / "new").touch()
            new = see(table, "new")
            assert table.root.mount.any_generation
            assert (new.nodeid, new.generation) == listed(table, "new")
            assert listed(table, "directory") == (node.nodeid, known), (
                "with another generation the kernel would see another file"
            )
            for found in (new, table.get(node.nodeid), other):
                assert identity(table.fds.fd(found)) == found.id
            after = NodeTable(os.open(mountpoint, os.O_PATH))  # mounted again: a client's old handle comes first
            revived = after.revive(new.nodeid)
            assert (revived.generation, revived.id) == (new.generation, new.id)
            after.close()
        finally:
            table.close()


def test_an_idle_node_is_a_record(table: NodeTable, tmp_path: Path) -> None:
    """Between operations, a node whose file can be reopened by handle needs no object, and comes back unchanged."""
    has_handles = bool(table.mounts.all[0].handles)
    names = [f"file{number}" for number in range(20)]
    for name in names:
        (tmp_path / name).touch()
    kept = [
        (node.nodeid, node.generation, node.birth, node.kind, node.id, node.handle)
        for node in (see(table, name) for name in names)
    ]
    table.trim()
    assert len(table.nodes) == (1 if has_handles else 1 + len(names))
    assert len(table) == 1 + len(names)
    assert sorted(table.ids()) == sorted([1, *(nodeid for nodeid, *_ in kept)])
    for name, expected in zip(names, kept):
        node = table.get(expected[0])
        assert (node.nodeid, node.generation, node.birth, node.kind, node.id, node.handle) == expected
        assert node.lookups == 1
        assert identity(table.fds.fd(node)) == node.id
        assert see(table, name) is node
        table.trim()
        table.forget(node.nodeid, 1)
        assert node.nodeid in table
        table.forget(node.nodeid, 1)
        assert node.nodeid not in table
    assert len(table) == 1


def listed(table: NodeTable, name: str) -> tuple[int, int]:
    """(node id, generation) of an entry of the root's listing."""
    fd = table.fds.fd(table.root)
    nodeid, generation, mount = table.listed(
        file_syscalls.statx_fields(fd, name.encode()), table.root, fd, name.encode()
    )
    assert mount is table.root.mount
    return nodeid, generation


def test_what_is_listed_is_what_is_looked_up(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    first = listed(table, "a")
    node = see(table, "a")
    assert (node.nodeid, node.generation) == first == listed(table, "a")
    assert node.lookups == 3
    assert identity(table.fds.fd(node)) == node.id
    table.trim()
    table.forget(node.nodeid, 3)
    assert node.nodeid not in table


def test_a_listing_tells_a_reused_inode_number_apart(table: NodeTable, tmp_path: Path) -> None:
    """A file is removed behind the mount, and another one gets its number: the kernel is sent another generation."""
    for number in range(200):
        path = tmp_path / f"{number}"
        path.touch()
        nodeid, generation = listed(table, path.name)
        table.trim()
        path.unlink()
        time.sleep(0.02)  # birth times are as coarse as the kernel's tick
        path.touch()
        again, newer = listed(table, path.name)
        if again == nodeid:
            assert newer != generation
            node = table.get(nodeid)
            assert identity(table.fds.fd(node)) == node.id
            return
    pytest.skip(f"the filesystem of {tmp_path} does not reuse inode numbers")


def test_a_node_in_use_stays_an_object(table: NodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    node = see(table, "a")
    table.used(node, 1)
    table.trim()
    assert table.get(node.nodeid) is node
    table.used(node, -1)
    table.trim()
    assert (table.get(node.nodeid) is node) == (not table.mounts.all[0].handles)


def test_directories_at_rest_are_listed(table: NodeTable, tmp_path: Path) -> None:
    """A flush of everything goes through these, in a thread of its own."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    directory = see(table, "directory")
    see(table, "file")
    table.trim()
    assert [node.nodeid for node in table.directories()] == [1, directory.nodeid]
    assert len(table) == 3
