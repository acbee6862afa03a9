"""``cntr --host HOST cp`` between this machine and a container there works as on one machine; with a real sshd and ssh."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from testkit.container import SlimContainer
from testkit.far import WORKER, runs
from tests.cli.trees import leftovers, look, make_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def container():
    with SlimContainer("far-cp") as running:
        yield running


def copied(done: subprocess.CompletedProcess) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done


@pytest.mark.parametrize("user", ["root", "worker"])
def test_a_tree_comes_back_as_it_went(far, container, at, tmp_path, user):
    """With links of both kinds, odd names, modes, times, holes; one connection per copy, two the first time."""
    host, before = f"{user}@far", far.connections()
    make_tree(tmp_path / "source")
    copied(far.run("cp", str(tmp_path / "source"), at(f"/{user}"), host=host))
    assert far.connections() == before + 2
    assert look(container.root / user) == look(tmp_path / "source")
    copied(far.run("cp", at(f"/{user}"), str(tmp_path / "back"), host=host))
    assert look(tmp_path / "back") == look(tmp_path / "source")
    assert far.connections() == before + 3
    assert not leftovers(container.root, tmp_path)
    far.wait(lambda: not list((far.place / f"home-{user}/.cache/cntr/far").glob("run-*")))


def test_bytes_by_a_pipe_and_what_goes_wrong(far, container, at, tmp_path):
    """Standard streams are this machine's, statuses are cp's, and errors there are reported once."""
    data = os.urandom(3 << 20)
    copied(far.run("cp", "/dev/stdin", at("/piped"), input=data))
    assert (container.root / "piped").read_bytes() == data
    done = far.run("cp", at("/piped"), "/dev/stdout")
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")
    (container.root / "odd").mkdir()
    os.mkfifo(container.root / "odd/fifo")
    (container.root / "odd/file").write_text("kept")
    done = far.run("cp", at("/odd"), str(tmp_path))
    assert (done.returncode, (tmp_path / "odd/file").read_text()) == (1, "kept")
    assert done.stderr.endswith(b":/odd/fifo: a FIFO: not copied\n")
    for words, said in (
        ((at("/no-such"), str(tmp_path)), b":/no-such: No such file or directory\n"),
        ((str(tmp_path / "no-such"), at("/")), b"no-such: No such file or directory\n"),
        (("no-such-container:/x", str(tmp_path)), b"cntr: no-such-container:"),
    ):
        done = far.run("cp", *words)
        assert (done.returncode, said in done.stderr, done.stderr.count(b"\n")) == (125, True, 2), done
    assert far.run("cp", "/x", "/y").returncode == 125
    done = far.run("cp", at("/piped"), str(tmp_path), host="ssh://root@far:1")
    assert (done.returncode, done.stderr[:24]) == (125, b"cntr: ssh://root@far:1: ")


def test_numbers_of_another_machine_are_not_this_ones(far, container, at, tmp_path):
    """A directory there may have the device and inode numbers of one here; owners are the container's numbers."""
    (container.root / "same").mkdir()
    (container.root / "same/file").write_text("x")
    copied(far.run("cp", at("/same/."), str(container.root / "same")))  # they are the same, but nobody can know
    os.chown(container.root / "same/file", 1234, 4321)
    copied(far.run("cp", "--archive", at("/same"), str(tmp_path)))
    assert ((tmp_path / "same/file").stat().st_uid, (tmp_path / "same/file").stat().st_gid) == (1234, 4321)
    copied(far.run("cp", "--archive", str(tmp_path / "same"), at("/again"), host="worker@far"))
    assert (container.root / "again/file").stat().st_uid == 1234
    copied(far.run("cp", str(tmp_path / "same"), at("/plain"), host="worker@far"))
    assert (container.root / "plain/file").stat().st_uid == 0 != WORKER


def test_a_shell_there_that_talks(far, at, tmp_path, container):
    """A login shell's output is no part of the copy."""
    (container.root / "said").write_text("dear\n")
    copied(far.run("cp", at("/said"), str(tmp_path), host="talker@far"))
    assert (tmp_path / "said").read_text() == "dear\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_copy_leaves_nothing_there(far, container, at, number):
    process = far.popen("cp", "/dev/stdin", at("/half"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(os.urandom(1 << 20))
    process.stdin.flush()
    far.wait(lambda: leftovers(container.root))
    process.send_signal(number)
    assert process.wait(20) == (130 if number == signal.SIGINT else -9)
    process.communicate()
    far.wait(lambda: not leftovers(container.root) and not runs("--cp"))
    assert not (container.root / "half").exists()


def test_a_copy_whose_time_is_over_is_reported(far, container, at):
    """The container's machine keeps the time; no partial copy is left."""
    words = ("cp", "--timeout", "1s", "/dev/stdin", at("/slow"))
    with far.popen(*words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"x" * (1 << 20))
        process.stdin.flush()
        said = process.stderr.readline() + process.stderr.readline()
        far.wait(lambda: not runs("--cp") and not leftovers(container.root))
        process.stdin.close()
        assert process.wait(20) == 129
        assert b"the session was ended: its time is over" in said
        assert process.stderr.read() == b""
