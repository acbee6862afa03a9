"""CntrFS over filesystems other than the suite's own: checks that pass on them directly must pass through the mount."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from testkit.servers import SETID_AND_DEVICES, Server, TreeUnderTest, missing, open_to_others, remove_tree

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
    """An overlay; over: a lower directory that is an overlay itself."""
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
    """The files are in the lower layer: everything is copied up."""
    for name in ("source", "mount"):
        (base / "lower" / "lower" / name).mkdir(parents=True)
        (base / "lower" / "lower" / name).chmod(0o755)
    _overlay(base)


def _served(base: Path) -> Callable[[], object]:
    """Another FUSE server: each operation on it is done by a worker."""
    (base / "disk").mkdir()
    server = Server("devfuse", base / "disk", base / "top", base / "log-below", options=SETID_AND_DEVICES)
    server.start()
    return server.stop


BACKINGS = {
    "fuse": _served,
    "ramfs": lambda base: _mount("-t", "ramfs", "ramfs", base / "top"),
    "filled overlay": _filled_overlay,
    "tmpfs": lambda base: _mount("-t", "tmpfs", "tmpfs", base / "top"),
    "xfs": lambda base: _image("xfs", "xfsprogs", base),
    "btrfs": lambda base: _image("btrfs", "btrfs-progs", base),
    "overlay": _overlay,
    # Two levels exceed what the kernel stacks (FILESYSTEM_MAX_STACK_DEPTH), so the server reads and
    # writes.
    "overlays": _overlays,
}


@pytest.fixture(params=BACKINGS)
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the filesystem."""
    (tmp_path / "top").mkdir()
    open_to_others(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _unmount_below(tmp_path))
        stop = BACKINGS[request.param](tmp_path)
        if stop is not None:
            stack.callback(stop)
        (tmp_path / "top").chmod(0o755)
        yield tmp_path / "top"


def _unmount_below(base: Path) -> None:
    """The server's processes hold the filesystem until the last of them exits, a moment after it was told to."""
    for path in (base / "top", base / "first"):
        _unmount(path)


def _unmount(path: Path) -> None:
    deadline = time.monotonic() + 60
    while os.path.ismount(path) and time.monotonic() < deadline:
        if subprocess.run(["umount", path], capture_output=True, check=False).returncode:
            time.sleep(0.1)


def _outcome(check: Check, place: TreeUnderTest) -> str:
    """The failure, or an empty string if the check passes."""
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
        mounted, plain = TreeUnderTest(binding, backing, server), TreeUnderTest("plain", backing, None)
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
    """Read-only, without ACLs: every user can read everything, and nothing can be written."""
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


@pytest.mark.parametrize("binding", ["devfuse", "devfuse-io_uring", "pyfuse3"])
def test_what_is_removed_is_free_at_once(binding: str, tmp_path: Path) -> None:
    """The server holds a removed file until the kernel's FORGET, which is sent with the next request."""
    if missing(binding):
        pytest.skip(missing(binding))
    for name in ("disk", "mount"):
        (tmp_path / name).mkdir()
    _mount("-t", "tmpfs", "-o", "nr_inodes=9", "tmpfs", tmp_path / "disk")
    server = Server(binding, tmp_path / "disk", tmp_path / "mount", tmp_path / "log")
    try:
        server.start()
        for number in range(8):
            (tmp_path / "mount" / f"{number}").touch()
        assert _tried((tmp_path / "mount" / "8").touch) == "ENOSPC"
        for number in [*range(8)] * 5:
            (tmp_path / "mount" / f"{number}").unlink()
            (tmp_path / "mount" / f"{number}").touch()
        assert server.alive
    finally:
        problem = server.stop()
        _unmount(tmp_path / "disk")
    assert not problem


def _tried(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _fill_up(top: Path) -> tuple[int, list[object]]:
    """(bytes that fitted into a file, other results on a full filesystem)."""
    big = os.open(top / "big", os.O_RDWR | os.O_CREAT)
    (top / "small").write_bytes(b"s" * 100)
    size = 0
    while isinstance(written := _tried(lambda: os.write(big, b"x" * (1 << 16))), int):
        size += written
    said = [written, _tried(lambda: os.fsync(big)), _tried(lambda: os.write(big, b"y" * (1 << 16)))]
    said.append(_tried(lambda: os.posix_fallocate(big, size, MIB)))
    said.append(_tried(lambda: os.ftruncate(big, size + MIB)))  # a hole takes no room
    made = 0
    while (last := _tried((top / f"d{made}").mkdir)) is None and made < 1000:
        made += 1
    said += [last, _tried((top / "no").touch), _tried(lambda: os.mkfifo(top / "p"))]
    said += [_tried(lambda: os.rename(top / "small", top / "moved")), _tried(lambda: len((top / "moved").read_bytes()))]
    os.ftruncate(big, 0)
    said.append(_tried(lambda: os.write(big, b"z" * 5000)))
    os.close(big)
    for number in range(made):
        (top / f"d{number}").rmdir()
    for name in ("big", "moved", "no", "p"):
        (top / name).unlink(missing_ok=True)
    return size, [*said, sorted(os.listdir(top))]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("binding", ["devfuse", "devfuse-io_uring", "pyfuse3"])
def test_a_full_disk(binding: str, kind: str, tmp_path: Path) -> None:
    """The same calls are refused, the same ones work, and freed space is available again."""
    if missing(binding):
        pytest.skip(missing(binding))
    for name in ("disk", "mount"):
        (tmp_path / name).mkdir()
    if kind == "tmpfs":
        _mount("-t", "tmpfs", "-o", "size=2m,nr_inodes=30", "tmpfs", tmp_path / "disk")
    else:
        with open(tmp_path / "image", "wb") as image:
            image.truncate(16 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "48", "-O", "^has_journal", tmp_path / "image"], check=True)
        _mount("-o", "loop", tmp_path / "image", tmp_path / "disk")
    server = Server(binding, tmp_path / "disk", tmp_path / "mount", tmp_path / "log")
    try:
        before = _fill_up(tmp_path / "disk")
        assert "ENOSPC" in before[1]
        server.start()
        for _ in range(2):
            size, said = _fill_up(tmp_path / "mount")
            assert said == before[1]
            assert abs(size - before[0]) <= MIB // 8
        assert not server.new_suspicious_lines()
    finally:
        problem = server.stop()
        _unmount(tmp_path / "disk")
    assert not problem


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_proc(binding: str, tmp_path: Path) -> None:
    """Files without a size, generated on reading; a directory that disappears with its process."""
    if missing(binding):
        pytest.skip(missing(binding))
    (tmp_path / "mount").mkdir()
    server = Server(binding, Path("/proc"), tmp_path / "mount", tmp_path / "log")
    with subprocess.Popen(["sleep", "100"], env={"WORTH": "1" * 9000}) as process:
        try:
            server.start()
            there, here = Path("/proc"), tmp_path / "mount"
            of_process = f"{process.pid}"
            for name in ("cmdline", "comm", "environ", "maps", "mountinfo", "uid_map"):
                assert (here / of_process / name).read_bytes() == (there / of_process / name).read_bytes(), name
            for name in ("sys/kernel/ostype", "filesystems", "cpuinfo", "sys/kernel/random/boot_id", "version"):
                if name != "cpuinfo" or binding == "devfuse":
                    lines = [(top / name).read_text().splitlines() for top in (here, there)]
                    assert [line for line in lines[0] if "MHz" not in line] == [
                        line for line in lines[1] if "MHz" not in line
                    ]
            for name in ("exe", "cwd", "root", "fd/0"):
                assert os.readlink(here / of_process / name) == os.readlink(there / of_process / name)
            assert sorted(os.listdir(here / of_process / "fd")) == sorted(os.listdir(there / of_process / "fd"))
            assert set(os.listdir(here / of_process)) == set(os.listdir(there / of_process))
            with open(here / of_process / "environ", "rb", buffering=0) as file:  # in parts, at any offset
                file.seek(4000)
                assert file.read(10) == b"1" * 10
                assert os.pread(file.fileno(), 6, 0) == b"WORTH="
            (here / of_process / "oom_score_adj").write_text("77")
            assert (there / of_process / "oom_score_adj").read_text() == "77\n"
            assert _tried(lambda: (here / of_process / "oom_score_adj").write_text("9999")) == "EINVAL"
            assert _tried(lambda: (here / of_process / "new").touch()) in ("ENOENT", "EACCES", "EPERM")
            process.kill()
            process.wait()
            assert _tried(lambda: (here / of_process / "comm").read_text()) in ("ENOENT", "ESRCH", "ESTALE")
            assert of_process not in os.listdir(here)
            assert server.alive, server.log_end()
            assert not server.new_suspicious_lines()
        finally:
            process.kill()
            problem = server.stop()
    assert not problem


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backing", ["filled overlay", "fuse", "xfs"], indirect=True)
def test_the_state_machine_there(backing: Path, tmp_path: Path) -> None:
    for name in ("source", "mount"):
        (backing / name).mkdir(exist_ok=True)
    server = Server("devfuse", backing / "source", backing / "mount", tmp_path / "log", options=SETID_AND_DEVICES)
    server.start()
    try:
        pair = Pair(TreeUnderTest("devfuse", backing, server))
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
