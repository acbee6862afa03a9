"""The arguments of ``cntr cp``: targets and paths, the caller's open files, links that lead to no file."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess

import pytest

from cntr.cp import words
from cntr.errors import UsageError
from testkit.container import SlimContainer
from tests.cli.trees import CNTR, cp, done, leftovers


@pytest.fixture
def container():
    with SlimContainer("cpwords") as running:
        yield running


@pytest.mark.parametrize(
    ("word", "target", "path"),
    [
        ("web:/etc", "web", b"/etc"),
        ("web:/data/C:/x", "web", b"/data/C:/x"),
        ("web:/a:b", "web", b"/a:b"),
        ("web:data/C:/x", "web", b"/data/C:/x"),
        ("web:etc", "web", b"/etc"),
        ("docker:web:/etc", "docker:web", b"/etc"),
        ("docker:web:/a:/b", "docker:web", b"/a:/b"),
        ("podman:web:etc/x:/y", "podman:web", b"/etc/x:/y"),
        ("crio:web:.", "crio:web", b"/."),
        ("docker:/etc", "docker", b"/etc"),
        ("pid:42:/x", "pid:42", b"/x"),
        ("pid:42:/C:/x", "pid:42", b"/C:/x"),
        ("k8s:ns/pod/app:/etc", "k8s:ns/pod/app", b"/etc"),
        ("command:/usr/bin/app:/etc", "command:/usr/bin/app", b"/etc"),
        ("command:nginx: master process:/etc", "command:nginx: master process", b"/etc"),
        ("unit:a:b.service:/etc", "unit:a:b.service", b"/etc"),
        ("web:/\udcff", "web", b"/\xff"),
        ("./a:/b", "", b"./a:/b"),
        ("../a:b", "", b"../a:b"),
        ("/a:/b", "", b"/a:/b"),
        (":/b", "", b":/b"),
        ("plain", "", b"plain"),
    ],
)
def test_the_first_colon_that_ends_a_target(word, target, path):
    assert words.split(word) == (target, path)


@pytest.mark.parametrize("word", ["web:", "docker:web", "docker:web:", "pid:42", "unit:a.service", "", "-", "a:\0"])
def test_a_word_without_a_path(word):
    with pytest.raises(UsageError) as caught:
        words.split(word)
    assert caught.value.hint


def test_two_dashes_end_the_options(container, at, tmp_path):
    (tmp_path / "-a").write_text("x")
    done(cp("-a", at("/b"), "-L", "--", cwd=tmp_path))
    assert (container.root / "b").read_text() == "x"
    result = subprocess.run([*CNTR, "cp", "--", "a", "b", "c"], capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (125, 2)


def test_a_drive_of_wine_can_be_named(container, at, tmp_path):
    (container.root / "drive/C:").mkdir(parents=True)
    (container.root / "drive/C:/x").write_text("x")
    done(cp(at("/drive/C:/x"), tmp_path / "x"))
    assert (tmp_path / "x").read_text() == "x"


# --- the caller's open files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/../dev/stdout"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_file_to_standard_output(container, at, tmp_path, word, kind):
    data = os.urandom(300000)
    with open(container.root / "f", "wb") as stream:
        stream.write(data)
        stream.truncate(400000)
    before = os.lstat("/dev/stdout").st_ino
    command = [*CNTR, "cp", at("/f"), word]
    if kind == "pipe":
        result = subprocess.run(command, capture_output=True)
        got = result.stdout
    else:
        with open(tmp_path / "out", "wb") as out:
            out.write(b"before")
            out.flush()
            result = subprocess.run(command, stdout=out, stderr=subprocess.PIPE)
        got = (tmp_path / "out").read_bytes().removeprefix(b"before")
    assert (result.returncode, result.stderr) == (0, b"")
    assert got == data + bytes(100000)
    assert os.lstat("/dev/stdout").st_ino == before, "the link is unchanged"


@pytest.mark.parametrize("word", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_file_from_standard_input(container, at, tmp_path, word, kind):
    data = os.urandom(1 << 20)
    (tmp_path / "in").write_bytes(data)
    if kind == "pipe":
        result = subprocess.run([*CNTR, "cp", word, at("/f")], input=data, capture_output=True)
    else:
        with open(tmp_path / "in", "rb") as stream:
            result = subprocess.run([*CNTR, "cp", word, at("/f")], stdin=stream, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    file = container.root / "f"
    assert stat.S_ISREG(file.lstat().st_mode)
    assert file.read_bytes() == data


def test_a_process_substitution(container, at):
    script = f"{' '.join(CNTR)} cp <(echo here) {at('/f')} && {' '.join(CNTR)} cp {at('/f')} /dev/fd/7 7>&1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "here\n")


@pytest.mark.parametrize("number", ["3", "7", "99999999999999999999"])
def test_an_fd_that_the_caller_did_not_open(container, at, tmp_path, number):
    """Files that cntr opened for itself can't be copied."""
    (container.root / "f").write_text("x")
    for pair in ((f"/dev/fd/{number}", at("/g")), (at("/f"), f"/proc/self/fd/{number}")):
        result = cp(*pair)
        assert result.returncode == 125
        assert b"no open file of the caller\nhint: " in result.stderr


def test_what_is_no_file_does_not_go_to_standard_output(container, at):
    (container.root / "d").mkdir()
    (container.root / "link").symlink_to("app")
    for path, why in (("/d", b"a directory: not written"), ("/link", b"a symbolic link: not written")):
        result = cp(at(path), "/dev/stdout")
        assert (result.returncode, result.stdout) == (125, b"")
        assert why in result.stderr
    assert cp(at("/link"), "/dev/stdout", "-L").stdout == (container.root / "app").read_bytes()


def test_a_full_standard_output_is_reported(container, at):
    (container.root / "f").write_text("x")
    with open("/dev/full", "wb") as full:
        result = subprocess.run([*CNTR, "cp", at("/f"), "/dev/stdout"], stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 125
    assert b"/dev/stdout: write: No space left on device" in result.stderr


# --- links that lead to no file -------------------------------------------------------------------------------------


def odd_links(top: pathlib.Path) -> list[str]:
    """Links to a FIFO and to open files of a process, directly, by another link, and by a /proc mounted elsewhere."""
    os.mkfifo(top / "fifo")
    links = {
        "to-fifo": "fifo",
        "to-null": "/dev/null",
        "to-stdout": "/proc/self/fd/1",
        "twice": "to-stdout",
        "far": f"{'../' * 20}proc/self/fd/1",
        "by-dev": "/proc/thread-self/fd/2",
        "other": f"/proc/{os.getpid()}/fd/0",
    }
    for name, target in links.items():
        (top / name).symlink_to(target)
    return list(links)


@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
def test_such_a_link_is_neither_replaced_nor_copied(container, at, tmp_path, outward):
    (tmp_path / "there").mkdir()
    there = tmp_path / "there" if outward else container.root
    names = odd_links(there)
    if not outward:  # its /dev has no links
        (there / "by-dev").unlink()
        (there / "by-dev").symlink_to("/dev/null")
    (tmp_path / "file").write_text("new")
    (container.root / "file").write_text("new")
    for name in names:
        to = (at("/file"), there / name) if outward else (tmp_path / "file", at(f"/{name}"))
        come = (there / name, at("/got")) if outward else (at(f"/{name}"), tmp_path / "got")
        for pair, why in ((to, b"not replaced"), (come, b"not copied")):
            result = cp(*pair, stdin=subprocess.DEVNULL)
            assert result.returncode == 125, (name, result)
            assert b": a symbolic link " in result.stderr, (name, result)
            assert why + b"\nhint: " in result.stderr, (name, result)
        assert (there / name).is_symlink(), name
        assert not os.path.lexists(tmp_path / "got")
        assert not os.path.lexists(container.root / "got")
    assert not leftovers(tmp_path, container.root)


def test_in_a_tree_they_are_named_and_the_rest_is_copied(container, at, tmp_path):
    """Also when a directory is copied over one that contains them."""
    (container.root / "d").mkdir()
    names = odd_links(container.root / "d")
    (tmp_path / "d").mkdir()
    for name in (*names, "zlast"):
        (tmp_path / "d" / name).write_text("new")
    result = cp(tmp_path / "d", at("/"))
    assert result.returncode == 1
    assert result.stderr.count(b": a symbolic link ") == len(names), result
    assert all((container.root / "d" / name).is_symlink() for name in names)
    assert (container.root / "d/zlast").read_text() == "new"


def test_any_other_link_is_replaced_as_ever(container, at, tmp_path):
    (tmp_path / "file").write_text("new")
    (tmp_path / "link").symlink_to("elsewhere")
    for target in ("nowhere", "/no/where", "app", "/app"):
        for name in ("file", "link"):
            there = container.root / "there"
            there.unlink(missing_ok=True)
            there.symlink_to(target)
            done(cp(tmp_path / name, at("/there")))
            assert there.is_symlink() == (name == "link")


# --- files of the kernel ----------------------------------------------------------------------------------------------


def test_a_file_of_sys_is_whole_and_no_change_is_seen(container, at, tmp_path):
    """Its size is a page, its content is shorter."""
    for path in ("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/class/net/lo/mtu", "/proc/version"):
        if not os.path.exists(path):
            continue
        done(cp(path, at("/from-host")))
        assert (container.root / "from-host").read_bytes() == pathlib.Path(path).read_bytes()
    done(cp(at("/sys/class/net/lo/address"), tmp_path / "address"))
    assert (tmp_path / "address").read_text() == "00:00:00:00:00:00\n"
    done(cp(at("/proc/sys/kernel/ostype"), tmp_path / "name"))
    assert (tmp_path / "name").read_text() == "Linux\n"


def test_a_name_of_the_host_with_a_colon_in_it():
    with pytest.raises(UsageError) as refused:
        words.Sides("co:lon", "web:/c")
    assert "./NAME" in refused.value.hint
    assert words.Sides("./co:lon", "web:/c").host_path == b"./co:lon"
