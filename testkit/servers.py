"""A CntrFS server in a process of its own: started, watched, and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cntr.linux import procfs

BINDINGS = ("pyfuse3", "devfuse")
#: Modes of the bindings: the same suite, with additional expected failures.
MODES = {
    "devfuse-io_uring": ("devfuse", ("-o", "io_uring")),
    "devfuse-writeback": ("devfuse", ("-o", "no_passthrough,writeback")),
    "pyfuse3-writeback": ("pyfuse3", ("-o", "writeback")),
}
#: In comparisons with a plain directory, the mount allows what the directory does.
SETID_AND_DEVICES = ("-o", "suid,dev")
REPOSITORY = Path(__file__).resolve().parents[1]
#: A machine that is emulated, or shared, takes so many times as long: the lab sets it for the checks it runs there.
SLOWNESS = float(os.environ.get("CNTR_TEST_SLOWNESS", "1"))
START_SECONDS = 20.0 * SLOWNESS
STOP_SECONDS = 15.0 * SLOWNESS

#: A server that prints one of these has a bug, even if the client saw nothing of it.
SUSPICIOUS = (b"Traceback", b"Exception ignored", b"ResourceWarning", b"RuntimeWarning", b"never awaited")


class ServerFailed(Exception):
    """The server did not start or did not stop; the message contains the end of its log."""


@functools.cache
def missing(binding: str) -> str:
    """Why this binding, mode or the plain directory cannot be used here; "" if it can."""
    mode = binding
    binding, _ = MODES.get(binding, (binding, ()))
    if os.geteuid() != 0:
        return "root is missing: mounting and the actors need it"
    if binding == "plain":
        return ""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing"
    if importlib.util.find_spec("cntr.cntrfs") is None:
        return "cntr.cntrfs is missing"
    if binding == "pyfuse3" and importlib.util.find_spec("pyfuse3") is None:
        return "the Python package pyfuse3 is missing (pip install 'cntr-attach[pyfuse3]')"
    if binding == "devfuse" and importlib.util.find_spec("cntr.cntrfs.devfuse") is None:
        return "the package cntr.cntrfs.devfuse is missing"
    return _missing_io_uring() if mode == "devfuse-io_uring" else ""


def _missing_io_uring() -> str:
    from cntr.cntrfs import probe

    try:
        probe.io_uring()
    except OSError as error:
        return f"FUSE over io_uring is missing: {error.strerror} ({probe.ENABLE_URING})"
    return ""


def is_mountpoint(path: Path) -> bool:
    """Whether PATH is a mount point, by mountinfo: a stat would hang on a dead server's mount."""
    mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
    return any(mount.mount_point == str(path) for mount in mounts)


def _die_with_parent() -> None:
    """End the server (which unmounts) if the test process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Server:
    """``python -m cntr.cntrfs SOURCE MOUNTPOINT --foreground --binding B``, or the argv of another server.

    binding: may be a key of MODES. In argv {source} and {mountpoint} are filled in; such a server must stay in the
    foreground.
    """

    def __init__(
        self,
        binding: str,
        source: Path,
        mountpoint: Path,
        log: Path,
        argv: Sequence[str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.source, self.mountpoint, self.log = source, mountpoint, log
        binding, mode = MODES.get(binding, (binding, ()))
        options = (*mode, *options)
        command = argv or (
            sys.executable, "-m", "cntr.cntrfs", "{source}", "{mountpoint}", "--foreground", "--binding", binding, *options
        )  # fmt: skip
        fill = {"{source}": str(source), "{mountpoint}": str(mountpoint)}
        self.command = [fill.get(word, word) for word in command]
        self.process: subprocess.Popen[bytes] | None = None
        self._log_read = 0

    def start(self) -> None:
        """Start it; return when the filesystem is mounted."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
                env={
                    **os.environ,
                    "CNTR_RIG": "cntrfs",
                },  # it outlives the test that first needed it, like a rig's engine
                cwd=REPOSITORY,
            )
        deadline = time.monotonic() + START_SECONDS
        while not is_mountpoint(self.mountpoint):
            if self.process.poll() is not None:
                raise ServerFailed(f"exit {self.process.returncode} before mounting:\n{self.log_end()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"not mounted after {START_SECONDS:.0f} s:\n{self.log_end()}")
            time.sleep(0.01)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None and is_mountpoint(self.mountpoint)

    def stop(self) -> str:
        """Send SIGTERM, and wait until nothing is mounted. Return what went wrong, or ""."""
        problem = ""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                problem = f"the server ignored SIGTERM for {STOP_SECONDS:.0f} s"
                self.kill()
        if is_mountpoint(self.mountpoint):
            problem = problem or "the server left its mount"
            self.detach()
        return problem

    def processes(self) -> list[int]:
        """The pids of the server and its descendants."""
        found = [self.process.pid] if self.process is not None else []
        for pid in found:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as children:
                found += [int(child) for child in children.read().split()]
        return found

    def kill(self) -> None:
        """Kill a server that hangs: every waiting call gets its error at once."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.detach()

    def detach(self) -> None:
        while is_mountpoint(self.mountpoint):
            if ctypes.CDLL(None).umount2(os.fsencode(str(self.mountpoint)), 2) != 0:
                break

    def log_end(self, size: int = 4000) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_bytes()[-size:].decode(errors="replace")
        return ""

    def new_suspicious_lines(self) -> str:
        """What the server has logged since the last call, if it contains a suspicious word."""
        with open(self.log, "rb") as log:
            log.seek(self._log_read)
            text = log.read()
            self._log_read = log.tell()
        return text.decode(errors="replace") if any(word in text for word in SUSPICIOUS) else ""


class TreeUnderTest:
    """A tree under test: ``directory`` through the filesystem, ``behind`` the same tree directly."""

    def __init__(self, name: str, base: Path, server: Server | None) -> None:
        self.name, self.base, self.server = name, base, server
        self.behind = base / "source"
        self.directory = base / "mount" if server else self.behind

    def fresh(self) -> str:
        """Make a new empty directory behind the mount; return its name."""
        made = tempfile.mkdtemp(prefix="check-", dir=self.behind)
        os.chmod(made, 0o755)
        return os.path.basename(made)


def open_to_others(path: Path) -> None:
    """Let every user search the test's directories down to PATH (the temporary directory itself is not changed)."""
    top = Path(tempfile.gettempdir())
    for directory in (path, *path.parents):
        if directory == top or top not in directory.parents:
            break
        directory.chmod(0o755)


def backing_parent() -> str | None:
    """Where trees under test are made: $CNTR_TEST_BACKING, or None for the temporary directory."""
    return os.environ.get("CNTR_TEST_BACKING")


def remove_tree(path: Path) -> None:
    """Remove what a check left, whatever its modes and flags; missing files are ignored."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", path], check=False, capture_output=True)
        shutil.rmtree(path)


@contextlib.contextmanager
def served(binding: str, base: Path, options: Sequence[str] = (), *, log: Path | None = None) -> Iterator[Path]:
    """Serve BASE/source at BASE/mount. Skips if the binding cannot be used; raises if the server had an error."""
    if missing(binding):
        pytest.skip(missing(binding))
    server = Server(binding, base / "source", base / "mount", log or base / "log", options=options)
    server.start()
    try:
        yield base / "mount"
        assert server.alive, server.log_end()
        assert not server.new_suspicious_lines()
    finally:
        problem = server.stop()
    assert not problem


@contextlib.contextmanager
def place(name: str, argv: Sequence[str] | None = None, options: Sequence[str] = ()) -> Iterator[TreeUnderTest]:
    """A tree under test called NAME: ``plain``, or a binding or mode with its server running; removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="cntrfs-", dir=backing_parent()))
    os.chmod(base, 0o755)
    for directory in ("source", "mount"):
        (base / directory).mkdir(mode=0o755)
    server = None
    if name != "plain":
        server = Server(name, base / "source", base / "mount", base / "log", argv, (*SETID_AND_DEVICES, *options))
    try:
        if server:
            server.start()
        yield TreeUnderTest(name, base, server)
    finally:
        problem = server.stop() if server else ""
        if server is None or not is_mountpoint(server.mountpoint):
            remove_tree(base)
    if problem:
        raise ServerFailed(f"{problem}\n")
