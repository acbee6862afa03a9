"""A server short of fds, threads or file size affects clients only as docs/cntrfs.md says."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.linux import syscalls
from testkit.servers import TreeUnderTest, missing, place

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
FDS = 64


@contextlib.contextmanager
def limited(binding: str, *limits: str, options: tuple[str, ...] = ()) -> Iterator[TreeUnderTest]:
    """A server started under limits by prlimit(1)."""
    if missing(binding):
        pytest.skip(missing(binding))
    argv = ("prlimit", *limits, sys.executable, "-m", "cntr.cntrfs", "{source}", "{mountpoint}", "--foreground",
            "--binding", binding, *options)  # fmt: skip
    with place(binding, argv=argv) as here:
        yield here
        assert here.server is not None
        assert here.server.alive, here.server.log_end()
        assert not here.server.new_suspicious_lines()


def hold(here: TreeUnderTest, count: int, *, remove: bool) -> None:
    with contextlib.ExitStack() as stack:
        files = []
        for number in range(count):
            path = here.directory / f"f{number}"
            files.append(stack.enter_context(open(path, "w+b", buffering=0)))
            files[-1].write(b"%d" % number)
            if remove:
                path.unlink()
        for number, file in enumerate(files):
            assert os.pread(file.fileno(), 10, 0) == b"%d" % number
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
            assert os.fstat(file.fileno()).st_nlink == (0 if remove else 1)


@pytest.mark.parametrize("remove", [False, True])
def test_many_open_files_under_few_fds(remove: bool) -> None:
    """The kernel reads and writes them itself and holds them: the server needs no fd for each."""
    with limited("devfuse", f"--nofile={FDS}") as here:
        hold(here, 3 * FDS, remove=remove)


@pytest.mark.parametrize(("binding", "options"), [("pyfuse3", ()), ("devfuse", ("-o", "no_passthrough"))])
def test_an_open_file_takes_a_fd_where_the_server_reads(binding: str, options: tuple[str, ...]) -> None:
    """As documented: an fd for each open file, and some 30 for the rest; beyond that a client gets
    EMFILE, and the server lives.
    """
    with limited(binding, f"--nofile={FDS}", options=options) as here:
        hold(here, 30, remove=False)
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            hold(here, FDS + 10, remove=False)
        assert caught.value.errno in (errno.EMFILE, errno.ENFILE)
        (here.directory / "again").write_bytes(b"x")


def test_the_servers_limit_of_file_sizes_is_not_everybodys() -> None:
    with limited("devfuse", "--fsize=4096:unlimited", options=("-o", "no_passthrough")) as here:
        (here.directory / "large").write_bytes(bytes(10000))
        assert (here.behind / "large").stat().st_size == 10000
        script = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); open('small', 'wb').write(bytes(10000))"
        done = subprocess.run(
            ["prlimit", "--fsize=5000", sys.executable, "-c", script],
            cwd=here.directory,
            capture_output=True,
            check=False,
        )
        assert b"File too large" in done.stderr
        assert (here.behind / "small").stat().st_size == 5000


def test_a_read_only_submount() -> None:
    with place("devfuse") as here:
        (here.behind / "below").mkdir()
        syscalls.mount("below", str(here.behind / "below"), "tmpfs", 0)
        try:
            (here.behind / "below" / "file").write_bytes(b"x")
            syscalls.mount(None, str(here.behind / "below"), None, 32 | 1)  # MS_REMOUNT | MS_RDONLY
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_CREAT):
                with pytest.raises(OSError, match="Read-only"):
                    os.open(here.directory / "below" / "file", flags)
            with pytest.raises(OSError, match="Read-only"):
                (here.directory / "below" / "new").touch()
            assert (here.directory / "below" / "file").read_bytes() == b"x"
        finally:
            syscalls.umount(str(here.behind / "below"), syscalls.MNT_DETACH)


def test_a_running_program_is_not_written() -> None:
    """ETXTBSY, and not the EIO into which the kernel turns any error of a backing file."""
    with place("devfuse") as here:
        program = here.behind / "sleep"
        program.write_bytes(Path("/bin/sleep").read_bytes())
        program.chmod(0o755)
        with subprocess.Popen([program, "60"]) as process:
            try:
                with pytest.raises(OSError, match="Text file busy"):
                    os.open(here.directory / "sleep", os.O_WRONLY)
            finally:
                process.kill()


def test_a_file_that_became_immutable_while_open() -> None:
    """fsync(2), SEEK_DATA, flock(2) and POSIX locks need no write permission."""
    with place("devfuse") as here:
        (here.behind / "file").write_bytes(b"x" * 5000)
        with open(here.directory / "file", "r+b", buffering=0) as file, open(here.directory / "file", "rb") as reader:
            file.write(b"y")
            if subprocess.run(["chattr", "+i", here.behind / "file"], check=False, capture_output=True).returncode:
                pytest.skip("the backing filesystem has no chattr +i")
            try:
                for fd in (file.fileno(), reader.fileno()):
                    os.fsync(fd)
                    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    fcntl.flock(fd, fcntl.LOCK_UN)
                fcntl.lockf(file, fcntl.LOCK_EX)
                with pytest.raises(PermissionError):
                    os.posix_fallocate(file.fileno(), 0, 10000)
                with pytest.raises(PermissionError):
                    os.open(here.directory / "file", os.O_RDWR)
            finally:
                subprocess.run(["chattr", "-i", here.behind / "file"], check=True)


THREADLESS = """
import sys, threading
from cntr.cntrfs.__main__ import main
start = threading.Thread.start
def refuse(self):
    if self.name.startswith(("worker", "lock", "flush")):
        raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = refuse
sys.exit(main(sys.argv[1:]))
"""


def test_a_server_that_gets_no_thread() -> None:
    """Locks then wait without a thread, and the serving thread does the workers' work."""
    argv = (sys.executable, "-c", THREADLESS, "{source}", "{mountpoint}", "--foreground")
    with place("devfuse", argv=argv) as here:
        (here.directory / "f").write_bytes(b"x" * 100)
        with open(here.directory / "f", "r+b") as one, open(here.directory / "f", "r+b") as two:
            os.fsync(one.fileno())
            assert os.copy_file_range(one.fileno(), two.fileno(), 10, 0, 50) == 10
            fcntl.flock(one, fcntl.LOCK_EX)
            waiting = threading.Thread(target=fcntl.flock, args=(two, fcntl.LOCK_EX))
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive()
            fcntl.flock(one, fcntl.LOCK_UN)
            waiting.join(10)
            assert not waiting.is_alive()
        assert here.server is not None
        assert here.server.alive
