"""CntrFS over other filesystems than the one the suite runs on: what passes there directly must pass through the mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from testkit.servers import SETID_AND_DEVICES, Place, Server, missing, open_to_others, remove_tree

from .actors import USER
from .checks import Check, all_checks
from .checks._tools import Unsupported
from .expected import reason
from .test_statemachine import Pair, Twins, bounds

PARTS = ("creation", "data", "links", "openfiles", "privileges", "renames", "space", "special", "xattrs")
MIB = 1 << 20


def _mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot be mounted here: {done.stderr.strip()}")


def _image(kind: str, package: str, base: Path) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is missing (Debian: {package})")
    image = base / "image"
    with open(image, "wb") as file:
        file.truncate(600 * MIB)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    _mount("-o", "loop", image, base / "top")


def _overlay(base: Path, over: Path | None = None) -> None:
    """An overlay; over: a lower directory that is one itself."""
    room = base / ("upper" if over else "lower")
    for name in ("lower", "upper", "work"):
        (room / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={over or room / 'lower'},upperdir={room / 'upper'},workdir={room / 'work'}"
    _mount("-t", "overlay", "overlay", "-o", options, base / "top")


def _overlays(base: Path) -> None:
    (base / "top").rename(base / "first")
    (base / "top").mkdir()
    _overlay(base)
    subprocess.run(["mount", "--move", base / "top", base / "first"], check=True)
    _overlay(base, base / "first")


def _filled_overlay(base: Path) -> None:
    """What is worked in lies in the lower layer: everything is copied up."""
    for name in ("source", "mount"):
        (base / "lower" / "lower" / name).mkdir(parents=True)
        (base / "lower" / "lower" / name).chmod(0o755)
    _overlay(base)


BACKINGS = {
    "ramfs": lambda base: _mount("-t", "ramfs", "ramfs", base / "top"),
    "filled overlay": _filled_overlay,
    "tmpfs": lambda base: _mount("-t", "tmpfs", "tmpfs", base / "top"),
    "xfs": lambda base: _image("xfs", "xfsprogs", base),
    "btrfs": lambda base: _image("btrfs", "btrfs-progs", base),
    "overlay": _overlay,
    # Two levels: more than the kernel stacks (FILESYSTEM_MAX_STACK_DEPTH), so the server reads and writes.
    "overlays": _overlays,
}


@pytest.fixture(params=BACKINGS)
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the filesystem."""
    (tmp_path / "top").mkdir()
    open_to_others(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _unmount_below(tmp_path))
        BACKINGS[request.param](tmp_path)
        (tmp_path / "top").chmod(0o755)
        yield tmp_path / "top"


def _unmount_below(base: Path) -> None:
    """The server's processes hold the filesystem until the last of them is gone, a moment after it was told to stop."""
    for path in (base / "top", base / "first"):
        _unmount(path)


def _unmount(path: Path) -> None:
    deadline = time.monotonic() + 60
    while os.path.ismount(path) and time.monotonic() < deadline:
        if subprocess.run(["umount", path], capture_output=True, check=False).returncode:
            time.sleep(0.1)


def _outcome(check: Check, place: Place) -> str:
    """Empty when it passes."""
    name = place.fresh()
    try:
        check.run(place.directory / name, place.behind / name)
    except Unsupported as lacking:
        return f"unsupported: {lacking}"
    except (AssertionError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        remove_tree(place.behind / name)
    return ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_what_passes_there_passes_through(binding: str, backing: Path, tmp_path: Path) -> None:
    if missing(binding):
        pytest.skip(missing(binding))
    for name in ("source", "mount"):
        (backing / name).mkdir(exist_ok=True)
    server = Server(binding, backing / "source", backing / "mount", tmp_path / "log", options=SETID_AND_DEVICES)
    server.start()
    try:
        mounted, plain = Place(binding, backing, server), Place("plain", backing, None)
        wrong = []
        for check in all_checks():
            if check.name.partition(".")[0] in PARTS and not reason(binding, check.name):
                found = _outcome(check, mounted)
                if found and not _outcome(check, plain):
                    wrong.append(f"{check.name}: {found}")
        assert not wrong, "\n".join(wrong)
        assert server.alive, server.log_end()
        assert not server.new_suspicious_lines()
    finally:
        problem = server.stop()
    assert not problem


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_squashfs(binding: str, tmp_path: Path) -> None:
    """Read-only, without ACLs: everything is readable to every user, and nothing can be written."""
    if missing(binding):
        pytest.skip(missing(binding))
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is missing (Debian: squashfs-tools)")
    tree = tmp_path / "tree"
    for number in range(20):
        (tree / f"d{number}").mkdir(parents=True)
        (tree / f"d{number}" / "file").write_text(f"{number}" * 1000)
    for name in ("disk", "mount"):
        (tmp_path / name).mkdir()
    open_to_others(tmp_path)
    subprocess.run(["mksquashfs", tree, tmp_path / "image", "-quiet", "-no-progress"], check=True, capture_output=True)
    _mount("-o", "loop", tmp_path / "image", tmp_path / "disk")
    server = Server(binding, tmp_path / "disk", tmp_path / "mount", tmp_path / "log")
    try:
        server.start()

        def read() -> list[str]:
            return [(tmp_path / "mount" / f"d{number}" / "file").read_text() for number in range(20)]

        assert USER(read) == [f"{number}" * 1000 for number in range(20)]
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mount" / "new").touch()
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mount" / "d1" / "file").chmod(0o600)
        assert server.alive
    finally:
        problem = server.stop()
        _unmount(tmp_path / "disk")
    assert not problem


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backing", ["filled overlay", "xfs"], indirect=True)
def test_the_state_machine_there(backing: Path, tmp_path: Path) -> None:
    for name in ("source", "mount"):
        (backing / name).mkdir(exist_ok=True)
    server = Server("devfuse", backing / "source", backing / "mount", tmp_path / "log", options=SETID_AND_DEVICES)
    server.start()
    try:
        pair = Pair(Place("devfuse", backing, server))
        machine = type("TwinsThere", (Twins,), {"pair": pair})
        try:
            run_state_machine_as_test(machine, settings=settings(bounds(), max_examples=10))
        finally:
            pair.end()
        assert server.alive, server.log_end()
        assert not server.new_suspicious_lines()
    finally:
        problem = server.stop()
    assert not problem
