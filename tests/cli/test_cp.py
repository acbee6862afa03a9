"""``cntr cp``: what is kept, where it goes, who owns it; in hand-made containers and those of real engines."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest

from cntr.cp import copy
from cntr.engines import Container
from cntr.linux import syscalls
from testkit.container import SlimContainer
from tests.cli.trees import CNTR, cp, done, leftovers, look, make_tree, names


@pytest.fixture
def container():
    with SlimContainer("cp") as running:
        yield running


def test_a_tree_comes_back_as_it_went(container, at, tmp_path):
    make_tree(tmp_path / "source")
    done(cp(tmp_path / "source", at("/")))
    assert look(container.root / "source") == look(tmp_path / "source")
    done(cp(at("/source"), tmp_path / "back", "-r"))  # the usual way
    assert look(tmp_path / "back") == look(tmp_path / "source")
    assert not leftovers(container.root, tmp_path)


def test_holes_stay_holes(container, at, tmp_path):
    file = tmp_path / "sparse"
    with open(file, "wb") as stream:
        stream.seek(1 << 38)
        stream.write(b"end")
        stream.truncate((1 << 38) + (1 << 30))
    done(cp(file, at("/")))
    done(cp(at("/sparse"), tmp_path / "back"))
    for copied in (container.root / "sparse", tmp_path / "back"):
        info = copied.stat()
        assert info.st_size == (1 << 38) + (1 << 30)
        assert info.st_blocks * 512 <= file.stat().st_blocks * 512 + 65536
        with open(copied, "rb") as stream:
            stream.seek((1 << 38) - 2)
            assert stream.read(8) == b"\0\0end\0\0\0"


def test_much_data(container, at, tmp_path):
    data = os.urandom(1 << 20) * 37 + b"odd end"
    (tmp_path / "much").write_bytes(data)
    done(cp(tmp_path / "much", at("/much")))
    done(cp(at("/much"), tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


# (DST before, the argument SRC, the argument DST) → DST afterwards, below the directory d
RULES = [
    ("", "file", "d/new", {b"new"}),
    ("", "file", "d", {b"file"}),
    ("", "file", "d/", {b"file"}),
    ("", "file", "d/.", {b"file"}),
    ("old", "file", "d/old", {b"old"}),
    ("sub/", "file", "d/sub", {b"sub", b"sub/file"}),
    ("", "tree", "d/new", {b"new", b"new/x"}),
    ("", "tree/", "d/new/", {b"new", b"new/x"}),
    ("", "tree", "d", {b"tree", b"tree/x"}),
    ("", "tree/", "d/", {b"tree", b"tree/x"}),
    ("", "tree/.", "d", {b"x"}),
    ("", "tree/./", "d", {b"x"}),
    ("", "tree/.", "d/new", {b"new", b"new/x"}),
    ("tree/y", "tree", "d", {b"tree", b"tree/x", b"tree/y"}),
    ("tree/x", "tree", "d", {b"tree", b"tree/x"}),
    ("x", "tree/.", "d", {b"x"}),
    ("", "soft", "d", {b"soft"}),
    ("", "softdir/.", "d", {b"x"}),
    ("", "softdir", "d", {b"softdir"}),
]


@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
@pytest.mark.parametrize(
    ("before", "source", "destination", "after"), RULES, ids=[" ".join(rule[:3]) for rule in RULES]
)
def test_where_it_goes(container, at, tmp_path, outward, before, source, destination, after):
    outside, inside = tmp_path, container.root
    here, there = (inside, outside) if outward else (outside, inside)
    (here / "file").write_text("new")
    (here / "tree").mkdir()
    (here / "tree" / "x").write_text("new")
    os.symlink("file", here / "soft")
    os.symlink("tree", here / "softdir")
    (there / "d").mkdir()
    if before.endswith("/"):
        (there / "d" / before).mkdir(parents=True)
    elif before:
        (there / "d" / before).parent.mkdir(exist_ok=True)
        (there / "d" / before).write_text("old")
    words = (
        (at(f"/{source}"), f"{tmp_path}/{destination}") if outward else (f"{tmp_path}/{source}", at(f"/{destination}"))
    )
    done(cp(*words))
    assert names(there / "d") == after
    for path in (there / "d").rglob("*"):
        if path.is_file() and path.name != "y":
            assert path.read_text() == "new"
    if before == "tree/y":
        assert (there / "d/tree/y").read_text() == "old"


REFUSED = [
    ("file", "d/no/file", b"/d/no: No such file or directory"),
    ("file", "d/new/", b"/d/new/: no such directory"),
    ("tree", "d/old", b"/d/old: a regular file"),
    ("tree", "d/no/where", b"/d/no: No such file or directory"),
    ("missing", "d", b"/missing: No such file or directory"),
    ("file/", "d", b"/file/: Not a directory"),
    ("fifo", "d", b"/fifo: a FIFO: not copied"),
    ("file", "d/fifo", b"/d/fifo: a FIFO: not replaced"),
]


@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
@pytest.mark.parametrize(("source", "destination", "why"), REFUSED, ids=[" ".join(rule[:2]) for rule in REFUSED])
def test_the_impossible_is_reported_in_one_line(container, at, tmp_path, outward, source, destination, why):
    here, there = (container.root, tmp_path) if outward else (tmp_path, container.root)
    (here / "file").write_text("new")
    (here / "tree").mkdir()
    os.mkfifo(here / "fifo")
    (there / "d").mkdir()
    (there / "d/old").write_text("old")
    os.mkfifo(there / "d/fifo")
    words = (
        (at(f"/{source}"), f"{tmp_path}/{destination}") if outward else (f"{tmp_path}/{source}", at(f"/{destination}"))
    )
    result = cp(*words)
    assert result.returncode == 125
    message, hint = result.stderr.decode().splitlines()
    assert why.decode() in message
    assert hint.startswith("hint: ")
    assert names(there / "d") == {b"old", b"fifo"}
    assert (there / "d/old").read_text() == "old"


@pytest.mark.parametrize("words", [("a", "b"), ("1:/a", "2:/b"), ("-", "1:/a"), ("", "1:/x"), ("1:a", "b")])
def test_the_command_line_is_checked_first(words, tmp_path):
    result = cp(*words, cwd=tmp_path)
    assert result.returncode == 125
    assert len(result.stderr.splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_a_host_file_with_a_colon(container, at, tmp_path):
    (tmp_path / "a:").mkdir()
    (tmp_path / "a:/b").write_text("x")
    done(cp("./a:/b", at("/"), cwd=tmp_path))
    assert (container.root / "b").read_text() == "x"


def test_a_link_named_is_copied_as_a_link_and_followed_with_L(container, at, tmp_path):
    (container.root / "real").write_text("x")
    os.symlink("/real", container.root / "link")
    done(cp(at("/link"), tmp_path / "a"))
    assert os.readlink(tmp_path / "a") == "/real"
    done(cp(at("/link"), tmp_path / "b", "-L"))
    assert (tmp_path / "b").read_text() == "x"
    assert not (tmp_path / "b").is_symlink()


def test_special_files_are_named_and_the_rest_is_copied(container, at, tmp_path):
    (container.root / "d").mkdir()
    os.mkfifo(container.root / "d/fifo")
    os.mknod(container.root / "d/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    (container.root / "d/zfile").write_text("x")
    result = cp(at("/d"), tmp_path / "d")
    assert result.returncode == 1
    assert result.stderr.decode().splitlines() == [
        f"cntr: pid:{container.pid}:/d/disk: a block device: not copied",
        f"cntr: pid:{container.pid}:/d/fifo: a FIFO: not copied",
    ]
    assert names(tmp_path / "d") == {b"zfile"}


def test_a_directory_that_was_there_keeps_its_mode_and_other_files(container, at, tmp_path):
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d/new").write_text("x")
    there = container.root / "d"
    there.mkdir()
    there.chmod(0o1777)
    os.chown(there, 7, 8)
    (there / "other").write_text("y")
    done(cp(tmp_path / "d", at("/")))
    assert (stat.S_IMODE(there.stat().st_mode), there.stat().st_uid) == (0o1777, 7)
    assert (there / "other").read_text() == "y"


def test_what_is_in_the_way_is_not_lost(container, at, tmp_path):
    """A directory instead of a file, a file instead of a directory, a device: reported, and the rest is copied."""
    (tmp_path / "d/dir").mkdir(parents=True)
    (tmp_path / "d/dir/x").write_text("new")
    for name in ("file", "null", "zlast", "link"):
        (tmp_path / "d" / name).write_text("new")
    there = container.root / "d"
    (there / "file").mkdir(parents=True)
    (there / "file/kept").write_text("old")
    (there / "dir").write_text("old")
    os.mknod(there / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (container.root / "victim").write_text("old")
    os.symlink("../victim", there / "link")
    result = cp(f"{tmp_path}/d/.", at("/d"))
    assert result.returncode == 1
    said = result.stderr.decode()
    for name, why in (("dir", "Not a directory"), ("file", "Is a directory"), ("null", "File exists")):
        assert f"cntr: pid:{container.pid}:/d/{name}: {why}\n" in said
    assert (there / "file/kept").read_text() == (there / "dir").read_text() == "old"
    assert stat.S_ISCHR((there / "null").stat().st_mode)
    assert (there / "zlast").read_text() == "new"
    assert (container.root / "victim").read_text() == "old", "a link in a file's place is replaced"
    assert (there / "link").read_text() == "new"
    assert not (there / "link").is_symlink()
    assert not leftovers(container.root)


def test_a_full_filesystem_ends_the_copy_and_leaves_no_half_file(container, at, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(1 << 20))
    result = cp(tmp_path / "big", at("/dev/big"))  # a tmpfs of 64 KiB
    assert result.returncode == 125
    assert b"/dev/big: write: No space left on device\n" in result.stderr
    listed = subprocess.run(
        [*CNTR, "attach", str(container.pid), "--", "ls", "-A", "/var/lib/cntr/dev"], capture_output=True
    )
    assert listed.returncode == 0
    assert b"cntr-cp" not in listed.stdout
    assert b"big" not in listed.stdout


def test_the_kernels_filesystems_are_not_entered_from_above(container, at, tmp_path):
    (container.root / "file").write_text("x")
    result = cp(at("/"), tmp_path / "all")
    assert result.returncode == 1, "the devices"
    assert (tmp_path / "all/file").read_text() == "x"
    assert (tmp_path / "all/app").stat().st_mode & 0o777 == 0o755
    assert names(tmp_path / "all") == {b"file", b"app", b"dev", b"dev/ptmx"}
    assert b"note: pid:" in result.stderr
    done(cp(at("/proc/1/status"), tmp_path / "status"))
    assert (tmp_path / "status").read_text().startswith("Name:\tapp\n")


def test_a_deep_tree(container, at, tmp_path):
    """Deeper than PATH_MAX and Python's recursion limit."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    bottom = os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
    os.write(bottom, b"here")
    os.close(bottom)
    os.close(fd)
    try:
        done(cp(tmp_path / "deep", at("/")))
        counted = subprocess.run(["find", container.root / "deep"], capture_output=True, check=True).stdout
        assert counted.count(b"\n") == 1501
        assert counted.endswith(b"/bottom\n")
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "deep", container.root / "deep"], check=True)


def test_a_copy_into_itself_ends(container, at):
    """The container's root is a directory of the host, so both sides are one tree."""
    (container.root / "d").mkdir()
    (container.root / "d/file").write_text("x")
    (container.root / "d/to").mkdir()
    result = cp(at("/d"), container.root / "d/to")
    assert result.returncode == 1
    assert b"/d/to/d: the destination itself" in result.stderr
    assert names(container.root / "d") == {b"file", b"to", b"to/d", b"to/d/file", b"to/d/to"}
    same = cp(at("/d/."), container.root / "d")
    assert same.returncode == 125
    assert b"the same directory" in same.stderr


def test_the_files_of_a_container_without_a_process(tmp_path, monkeypatch):
    """Such as Buildah's working containers, which only have a root directory."""
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/motto").write_text("x")
    idle = Container("buildah", "work", 0, rootfs=str(rootfs), state="rootfs")
    monkeypatch.setattr(copy.engines, "resolve", lambda name: idle)
    said: list[str] = []
    assert copy.copy("work:/etc", str(tmp_path / "out"), archive=False, follow=False, say=said.append) == 0
    assert (tmp_path / "out/motto").read_text() == "x"
    assert copy.copy(str(tmp_path / "out"), "work:/../..", archive=False, follow=False, say=said.append) == 0
    assert (rootfs / "out/motto").read_text() == "x"
    assert said == []


def test_namespaces_alone(tmp_path):
    """A target that shares everything except its mounts."""
    with SlimContainer("mounts", namespaces=syscalls.CLONE_NEWNS) as running:
        done(cp(f"{running.pid}:/app", tmp_path / "app"))
        assert (tmp_path / "app").read_bytes() == (running.root / "app").read_bytes()


@pytest.mark.usefixtures("other_users")
def test_somebody_elses_container_takes_root(container, at, tmp_path):
    tmp_path.chmod(0o755)
    result = cp(at("/app"), tmp_path / "x", user=65534, group=65534, extra_groups=[])
    assert result.returncode == 125
    hint = result.stderr.decode().splitlines()[1]
    assert "only root, or the owner of a rootless container" in hint
    assert not (tmp_path / "x").exists()


def test_a_container_that_has_stopped(container, at, tmp_path):
    name = at("/app")
    container.stop()
    result = cp(name, tmp_path / "x")
    assert result.returncode == 125
    assert len(result.stderr.splitlines()) == 2
