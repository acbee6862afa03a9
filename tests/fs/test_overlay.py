"""An overlay with files in its lower layer as backing, as another container's root is; and an
overlay on CntrFS itself.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.linux import syscalls
from testkit.servers import BINDINGS, Server, missing, open_to_others, served

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")


def _fill(lower: Path) -> None:
    for number in range(20):
        (lower / "tree" / f"d{number}").mkdir(parents=True)
        (lower / "tree" / f"d{number}" / "file").write_text(f"lower {number}\n")
    (lower / "log").write_text("lower\n")
    (lower / "one").write_text("linked\n")
    os.link(lower / "one", lower / "two")


@pytest.fixture(params=["one filesystem", "several"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """``source`` is the overlay, with its layers on one filesystem (stable inode numbers) or on several (unstable)."""
    for name in ("lower", "upper", "work", "source", "mount"):
        (tmp_path / name).mkdir()
    open_to_others(tmp_path)
    words = ""
    with contextlib.ExitStack() as stack:
        if request.param == "several":
            syscalls.mount("lower", str(tmp_path / "lower"), "tmpfs", 0)
            stack.callback(syscalls.umount, str(tmp_path / "lower"), syscalls.MNT_DETACH)
            words = ",xino=off"
        _fill(tmp_path / "lower")
        layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        syscalls.mount("overlay", str(tmp_path / "source"), "overlay", 0, layers + words)
        stack.callback(syscalls.umount, str(tmp_path / "source"), syscalls.MNT_DETACH)
        yield tmp_path


@pytest.fixture(params=["devfuse", "devfuse few fds", "devfuse served", "pyfuse3"])
def top(request: pytest.FixtureRequest, base: Path) -> Iterator[Path]:
    binding, _, how = request.param.partition(" ")
    words = {"few fds": ("-o", "max_fds=4"), "served": ("-o", "no_passthrough")}.get(how, ())
    with served(binding, base, words) as top:
        yield top


def _walk(top: Path) -> None:
    """Use up many fds."""
    for number in range(20):
        (top / "tree" / f"d{number}" / "file").read_bytes()


def test_open_files_survive_a_copy_up(base: Path, top: Path) -> None:
    """By a write through the mount, and by one behind it; afterwards the open file is read, written and stat'ed."""
    for name, writer in (("log", top), ("tree/d1/file", base / "source")):
        before = (top / name).read_text()
        with open(top / name) as reader, open(top / name, "a") as appender:
            _walk(top)
            with open(writer / name, "a") as other:
                other.write("second\n")
            _walk(top)
            assert os.fstat(appender.fileno()).st_size >= len(before)
            appender.write("third\n")
            appender.flush()
            os.fsync(appender.fileno())
            assert (top / name).read_text() == before + "second\nthird\n"
            assert reader.read() == before + "second\nthird\n"
            os.fchmod(appender.fileno(), 0o640)
        assert (base / "source" / name).read_text() == before + "second\nthird\n"
        assert (base / "source" / name).stat().st_mode & 0o777 == 0o640


def test_appending_again_and_again(base: Path, top: Path) -> None:
    for number in range(5):
        with open(top / "log", "a") as file:
            file.write(f"{number}\n")
        _walk(top)
    assert (base / "source" / "log").read_text() == "lower\n0\n1\n2\n3\n4\n"


def test_a_working_directory_survives_a_copy_up(base: Path, top: Path) -> None:
    """Of the directory itself, and of its parent."""
    before = os.getcwd()
    os.chdir(top / "tree" / "d3")
    try:
        _walk(top)
        (base / "source" / "tree" / "d3" / "behind").write_text("behind")
        os.chmod(base / "source" / "tree", 0o750)
        _walk(top)
        Path("new").write_text("new")
        os.chmod(".", 0o700)
        _walk(top)
        assert Path("new").read_text() == "new"
        assert Path("behind").read_text() == "behind"
        assert Path("../d4/file").read_text() == "lower 4\n"
        assert os.path.samefile(".", top / "tree" / "d3")
    finally:
        os.chdir(before)
    assert sorted(os.listdir(base / "source" / "tree" / "d3")) == ["behind", "file", "new"]


def test_a_file_removed_while_open(top: Path) -> None:
    with open(top / "tree" / "d5" / "file", "r+") as file:
        os.unlink(top / "tree" / "d5" / "file")
        _walk_without = [number for number in range(20) if number != 5]
        for number in _walk_without:
            (top / "tree" / f"d{number}" / "file").read_bytes()
        assert file.read() == "lower 5\n"
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write("more")
        file.flush()
        file.seek(0)
        assert file.read() == "lower 5\nmore"


def test_a_mapping_is_of_the_file_that_was_written(top: Path) -> None:
    with open(top / "log", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:5] = b"LOWER"
        memory.flush()
        assert (top / "log").read_bytes() == b"LOWER\n"


def test_names_of_one_lower_file_part(base: Path, top: Path) -> None:
    """As on the overlay itself: what is written by one name does not appear in the other."""
    assert (top / "one").read_text() == (top / "two").read_text() == "linked\n"
    with open(top / "two", "a") as file:
        file.write("two\n")
    assert (base / "source" / "one").read_text() == "linked\n"
    assert (base / "source" / "two").read_text() == "linked\ntwo\n"
    assert (top / "one").read_text() == "linked\n"
    assert (top / "two").read_text() == "linked\ntwo\n"


def test_what_was_replaced_behind_is_seen(base: Path, top: Path) -> None:
    for number in range(10):
        path = base / "source" / "tree" / f"d{number}" / "file"
        assert (top / "tree" / f"d{number}" / "file").read_text() == f"lower {number}\n"
        path.unlink()
        path.write_text(f"replaced {number}\n")
    for number in range(10):
        deadline = 50
        while (top / "tree" / f"d{number}" / "file").read_text() != f"replaced {number}\n":
            deadline -= 1
            assert deadline
            subprocess.run(["sleep", "0.1"], check=True)


def test_renames_and_links(base: Path, top: Path) -> None:
    os.rename(top / "log", top / "tree" / "moved")
    os.link(top / "tree" / "moved", top / "again")
    with open(top / "again", "a") as file:
        file.write("again\n")
    assert (top / "tree" / "moved").read_text() == "lower\nagain\n"
    assert (top / "again").stat().st_nlink == 2
    os.unlink(top / "tree" / "moved")
    assert (top / "again").read_text() == (base / "source" / "again").read_text() == "lower\nagain\n"
    (top / "log").write_text("another")
    assert (top / "log").read_text() == "another"


def test_git_in_a_lower_layer(base: Path, tmp_path: Path) -> None:
    """Clone, commit and gc with the repository in the lower layer."""
    if shutil.which("git") is None:
        pytest.skip("git is missing (Debian: git)")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]

    def run(*words: str, where: Path) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            [*git, *words], cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert not done.returncode, f"git {words}: {done.stderr}"
        return done.stdout

    syscalls.umount(str(base / "source"), 0)
    lower = base / "lower"
    run("init", "-q", "repo", where=lower)
    for number in range(30):
        (lower / "repo" / f"f{number}").write_text(f"{number}\n" * 50)
    run("add", ".", where=lower / "repo")
    run("commit", "-qm", "lower", where=lower / "repo")
    layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    syscalls.mount("overlay", str(base / "source"), "overlay", 0, layers)
    server = Server("devfuse", base / "source", base / "mount", base / "log")
    server.start()
    try:
        repo = base / "mount" / "repo"
        assert run("status", "--porcelain", where=repo) == ""
        for number in range(30):
            with open(repo / f"f{number}", "a") as file:
                file.write("more\n")
            run("commit", "-qam", f"c{number}", where=repo) if number % 10 == 0 else None
        run("commit", "-qam", "last", where=repo)
        run("gc", "-q", "--prune=now", where=repo)
        run("fsck", "--strict", where=repo)
        run("worktree", "add", "-q", "../other", "HEAD~2", where=repo)
        run("clone", "-q", "repo", "cloned", where=base / "mount")
        assert run("status", "--porcelain", where=repo) == ""
        run("fsck", where=base / "mount" / "cloned")
        assert server.alive
    finally:
        problem = server.stop()
    assert not problem


@pytest.mark.parametrize("binding", BINDINGS)
def test_an_overlay_with_its_layers_on_it(binding: str, tmp_path: Path) -> None:
    """Both layers on one CntrFS: after the caches are dropped, the overlay still finds the origin
    of what it copied up.
    """
    if missing(binding):
        pytest.skip(missing(binding))
    for name in ("source", "mount", "top"):
        (tmp_path / name).mkdir()
    server = Server(binding, tmp_path / "source", tmp_path / "mount", tmp_path / "log")
    server.start()
    try:
        mounted = tmp_path / "mount"
        for name in ("lower", "upper", "work"):
            (mounted / name).mkdir()
        _fill(mounted / "lower")
        layers = f"lowerdir={mounted}/lower,upperdir={mounted}/upper,workdir={mounted}/work"
        syscalls.mount("overlay", str(tmp_path / "top"), "overlay", 0, layers)
        try:
            top = tmp_path / "top"
            with open(top / "log", "a") as file:
                file.write("upper\n")
            os.rename(top / "tree" / "d1" / "file", top / "tree" / "d1" / "moved")
            (top / "tree" / "d2" / "new").write_text("new")
            for _ in range(3):
                Path("/proc/sys/vm/drop_caches").write_text("2")
                assert (top / "log").read_text() == "lower\nupper\n"
                assert (top / "tree" / "d1" / "moved").read_text() == "lower 1\n"
                assert sorted(os.listdir(top / "tree" / "d2")) == ["file", "new"]
                assert (top / "tree" / "d2" / "file").read_text() == "lower 2\n"
                with open(top / "log", "r+") as file:
                    file.write("LOWER")
                with open(top / "log", "r+") as file:
                    file.write("lower")
        finally:
            syscalls.umount(str(tmp_path / "top"), syscalls.MNT_DETACH)
    finally:
        problem = server.stop()
    assert not problem
