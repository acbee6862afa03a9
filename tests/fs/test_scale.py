"""Many files and few fds: the server's memory and fds are bounded. (bench.fs --million measures the full size.)"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.servers import BINDINGS, TreeUnderTest, missing, place

from .actors import OTHER, USER

FILES = 50_000
BYTES_PER_FILE = {
    "devfuse": 200,
    "pyfuse3": 300,
}  # a million files: 250 and 400 MB, including the server's own 20 to 50
FD_LIMIT = 64
DEPTH, WIDTH = 100, 300


@pytest.fixture(params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if missing(name):
        pytest.skip(missing(name))
    return name


def status(pid: int, key: str) -> int:
    """A size of /proc/PID/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise KeyError(key)


def server_process(here: TreeUnderTest) -> int:
    """The process that serves requests."""
    assert here.server is not None
    os.listdir(here.directory)  # once it serves, it has its name
    return next(pid for pid in here.server.processes() if Path(f"/proc/{pid}/comm").read_text() == "cntrfs\n")


def test_memory_per_file(binding: str) -> None:
    """Two walks over two directories of 25,000 files, which kernel and server read in many parts."""
    with place(binding) as here:
        for name in ("first", "second"):
            (here.behind / name).mkdir()
            fd = os.open(here.behind / name, os.O_PATH)
            for number in range(FILES // 2):
                os.mknod(f"{number:05d}", 0o100644, dir_fd=fd)
            os.close(fd)
        pid = server_process(here)
        before = status(pid, "VmRSS")
        for _ in range(2):
            find = ["find", here.directory, "-type", "f", "-size", "0", "-printf", "."]
            assert len(subprocess.run(find, check=True, stdout=subprocess.PIPE).stdout) == FILES
        used = (status(pid, "VmHWM") - before) / FILES
        assert 40 < used <= BYTES_PER_FILE[binding], f"{used:.0f} bytes a file"
        assert (here.directory / "second" / "00007").stat().st_ino == (here.behind / "second" / "00007").stat().st_ino


@contextlib.contextmanager
def few_fds(binding: str, *options: str) -> Iterator[TreeUnderTest]:
    """A server limited to FD_LIMIT fds."""
    server = (sys.executable, "-m", "cntr.cntrfs", "{source}", "{mountpoint}", "--foreground", "--binding", binding)
    with place(binding, ("prlimit", f"--nofile={FD_LIMIT}:{FD_LIMIT}", *server, *options)) as here:
        assert f"Max open files            {FD_LIMIT}" in Path(f"/proc/{server_process(here)}/limits").read_text()
        yield here


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is missing (Debian: util-linux)")
@pytest.mark.parametrize("options", [(), ("-o", "no_passthrough"), ("-o", "cache=none")], ids=["", "read", "nocache"])
def test_few_fds(binding: str, options: tuple[str, ...]) -> None:
    """A deep and a wide tree with 64 fds: EMFILE only for files that are really open, and it passes."""
    with few_fds(binding, *options) as here:
        deep = here.directory
        for number in range(DEPTH):
            deep = deep / f"d{number}"
            deep.mkdir()
            (deep / "file").write_text(str(number))
        for number in range(WIDTH):
            (here.directory / f"w{number}").mkdir()
            (here.directory / f"w{number}").chmod(0o777)
            (here.directory / f"w{number}" / "suid").write_text("x")
            os.setxattr(here.directory / f"w{number}" / "suid", "user.number", str(number).encode())
        for _ in range(2):
            found = subprocess.run(["find", here.directory, "-printf", "%s %f\\n"], check=True, stdout=subprocess.PIPE)
            assert found.stdout.count(b"\n") == 1 + 2 * DEPTH + 2 * WIDTH
        with contextlib.ExitStack() as held:
            files = [held.enter_context(open(here.directory / f"w{number}" / "suid", "r+")) for number in range(20)]
            for number in range(WIDTH):
                name = here.directory / f"w{number}"
                assert os.getxattr(name / "suid", "user.number") == str(number).encode()
                os.rename(name / "suid", here.directory / f"w{(number + 1) % WIDTH}" / "moved")
                os.link(here.directory / f"w{(number + 1) % WIDTH}" / "moved", name / "linked")
                os.chmod(name / "linked", 0o6777)
                os.truncate(name / "linked", 10)
                os.symlink("x" * 100, name / "symlink")
                os.statvfs(name)
            for number, file in enumerate(files):
                assert file.read().rstrip("\0") == "x", number
        OTHER(_write, str(here.directory / "w200" / "linked"))
        assert (here.directory / "w200" / "linked").stat().st_mode & 0o7777 == 0o777
        USER(_make, str(here.directory / "w7"))
        assert (here.directory / "w7" / "mine").stat().st_uid == USER.uid
        for number in range(DEPTH // 2):  # unlinked while the kernel knows it: only an fd still reaches it
            assert (here.directory / f"w{number}" / "moved").read_text().rstrip("\0") == "x"
            (here.directory / f"w{number}" / "moved").unlink()
        subprocess.run(["rm", "-rf", *map(str, here.directory.iterdir())], check=True)
        assert list(here.behind.iterdir()) == []
        assert here.server is not None
        assert "Too many open files" not in here.server.log_end()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is missing (Debian: util-linux)")
def test_open_files_beyond_the_limit(binding: str) -> None:
    """More open files than the server may have fds: EMFILE for those only (for none if the kernel
    holds them itself).
    """
    with few_fds(binding) as here:
        (here.behind / "file").write_text("x")
        opened = []
        with contextlib.suppress(OSError):
            for _ in range(2 * FD_LIMIT):
                opened.append(os.open(here.directory / "file", os.O_RDONLY))
        assert len(opened) >= (2 * FD_LIMIT if binding == "devfuse" else FD_LIMIT // 3)
        assert os.stat(here.directory / "file").st_size == 1
        assert os.pread(opened[-1], 5, 0) == b"x"
        for fd in opened:
            os.close(fd)
        (here.directory / "other").write_text("y")
        assert sorted(os.listdir(here.directory)) == ["file", "other"]


def _write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"y")
    os.close(fd)


def _make(path: str) -> None:
    os.close(os.open(f"{path}/mine", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o2755))


def test_a_busy_filesystem_wakes_the_watch_seldom() -> None:
    """However much is written behind the mount, the watch looks a few hundred times a second, not once per write."""
    if missing("devfuse"):
        pytest.skip(missing("devfuse"))
    with place("devfuse") as here:
        assert here.server is not None
        os.listdir(here.directory)
        watches: list[int] = []
        deadline = time.monotonic() + 5
        while not watches and time.monotonic() < deadline:  # it gets its name a moment after the first answer
            time.sleep(0.05)
            names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in here.server.processes()}
            watches = [pid for pid, name in names.items() if name == "cntrfs-watch\n"]
        if not watches:
            pytest.skip("no watch here: fanotify(7) needs Linux 5.17 and CAP_SYS_ADMIN")
        paths = [here.behind / f"{number}" for number in range(50)]
        fds = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in paths]
        before, begun, writes = switches(watches[0]), time.monotonic(), 0
        while time.monotonic() < begun + 1:
            os.write(fds[writes % len(fds)], b"x")
            writes += 1
            time.sleep(0)  # between any two writes, the watch gets its turn
        woken = switches(watches[0]) - before
        seconds = time.monotonic() - begun
        for fd in fds:
            os.close(fd)
        if writes < 3000:
            pytest.skip(f"{writes} writes in a second: this machine is too busy")
        assert woken < 1500 * seconds


def switches(pid: int) -> int:
    """How often the process went to sleep."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("voluntary_ctxt_switches:")[2].split()[0])
