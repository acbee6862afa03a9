"""The cache of unpacked images: unpacked once, shared, locked, and private to its user."""

from __future__ import annotations

import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from cntr import images
from cntr.engines import trust
from cntr.errors import CntrError
from cntr.images import ImageError, cache
from tests.images import build
from tests.images.build import END, member

BASE = b"".join(member(b"base/%d" % i, b"0", b"base %d" % i) for i in range(20))


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("CNTR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(tmp_path, name: str, *layers: bytes, **changes: object) -> str:
    return build.archive(tmp_path / f"{name}.tar", build.files([layer + END for layer in layers], **changes))


def test_images_with_one_base_share_its_files(tmp_path, directory):
    trees = []
    for name, upper in (
        ("one", member(b"own", b"0", b"1")),
        ("two", member(b"base/.wh.3") + member(b"own", b"0", b"2")),
    ):
        with images.find(saved(tmp_path, name, BASE, upper)) as image:
            held = cache.open_tree(image)
            trees.append(held.path)
            held.close()
    one, two = trees
    assert os.path.samefile(f"{one}/base/5", f"{two}/base/5")
    assert os.path.exists(f"{one}/base/3")
    assert not os.path.exists(f"{two}/base/3")
    assert [pathlib.Path(tree, "own").read_text() for tree in trees] == ["1", "2"]
    assert oct(directory.stat().st_mode)[-3:] == "700"


def test_the_modes_are_the_images_whatever_the_callers_umask(tmp_path, directory):
    mask = os.umask(0o077)
    try:
        with images.find(saved(tmp_path, "one", BASE)) as image:
            held = cache.open_tree(image)
    finally:
        os.umask(mask)
    assert [oct(os.stat(path).st_mode)[-3:] for path in (held.path, f"{held.path}/base")] == ["755", "755"]
    held.close()


def test_unpacked_once(tmp_path, directory, monkeypatch):
    reference = saved(tmp_path, "one", BASE)
    with images.find(reference) as image:
        cache.open_tree(image).close()
    monkeypatch.setattr(cache.unpack, "apply", lambda *arguments, **options: pytest.fail("again"))
    with images.find(reference) as image:
        cache.open_tree(image).close()
    assert [row.files for row in cache.rows()] == [20]


def test_what_is_in_use_stays_and_the_rest_goes(tmp_path, directory):
    held = []
    for name in ("one", "two"):
        with images.find(saved(tmp_path, name, BASE, member(name.encode(), b"0", b"x"))) as image:
            held.append(cache.open_tree(image))
    held[0].close()
    removed, used = cache.clear()
    assert [len(removed), len(used)] == [1, 1]
    assert os.path.exists(f"{held[1].path}/base/1")
    held[1].close()
    cache.clear()
    assert os.listdir(directory / "trees") == []
    assert os.listdir(directory / "tmp") == []
    assert cache.rows() == []
    with pytest.raises(CntrError, match="no image"):
        cache.clear("nobody")


@pytest.mark.parametrize("lie", [{"diff_ids": ["sha256:" + "1" * 64]}, {"row": {"size": 7}}])
def test_what_fails_leaves_nothing(tmp_path, directory, lie):
    with images.find(saved(tmp_path, "bad", BASE, **lie)) as image, pytest.raises(ImageError):
        cache.open_tree(image)
    assert os.listdir(directory / "trees") == []
    assert os.listdir(directory / "tmp") == []
    assert cache.rows() == []


def test_two_at_once_unpack_it_once(tmp_path, directory):
    reference = saved(tmp_path, "one", BASE, member(b"x", b"0", b"x"))
    script = "import sys; from cntr import images; from cntr.images import cache; print(cache.open_tree(images.find(sys.argv[1])).path)"
    running = [
        subprocess.Popen([sys.executable, "-c", script, reference], stdout=subprocess.PIPE, cwd=os.getcwd())
        for _ in range(4)
    ]
    said = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(said) == 1
    assert len(os.listdir(directory / "trees")) == 2


def test_the_rest_of_a_killed_one_is_swept_and_a_living_ones_is_not(tmp_path, directory):
    cache.directory()
    for name in ("dead", "alive"):
        (directory / "tmp" / name / "tree").mkdir(parents=True)
        os.utime(directory / "tmp" / name, (0, 0))
    fd = os.open(directory / "tmp/alive", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with images.find(saved(tmp_path, "one", BASE)) as image:
            cache.open_tree(image).close()
    finally:
        os.close(fd)
    assert os.listdir(directory / "tmp") == ["alive"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a directory of another user")
def test_a_directory_that_others_can_write_to_is_refused(tmp_path, directory):
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    with pytest.raises(ImageError, match="this user alone"):
        cache.directory()
    directory.chmod(0o700)
    os.chown(directory, 1000, 1000)
    with pytest.raises(ImageError, match="this user alone"):
        cache.directory()
    os.chown(directory, 0, 0)
    cache.directory()
    os.chown(directory.parent, 1000, 1000)  # who could put another in its place
    trust.forget()
    with pytest.raises(ImageError, match="uid 1000 can write there"):
        cache.directory()
    trust.forget()
