"""The long cache timeouts of the fuse transport: changes of the tools' tree are visible at once, and no mount of the
nest is lost.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from cntr.linux import procfs
from testkit.container import SlimContainer
from tests.nest.tty import CNTR

SEEN_SECONDS = 40.0  # after an overflow, sixteen thousand events are read first
HOST = ("bin", "lib", "lib64", "usr")


@pytest.fixture
def tools(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A root with the host's programs, on a separate filesystem."""
    own = ("proc", "dev", "sys", "home", "root", "run", "tmp", "var/tmp")  # if one is missing, a stand-in covers /
    for name in (*own, "var/lib/cntr", "etc", "over", "room", "mounted", *HOST):
        (tmp_path / name).mkdir(parents=True)
    for name in HOST:
        subprocess.run(["mount", "--rbind", f"/{name}", tmp_path / name], check=True)
    tmp_path.chmod(0o755)  # one closed to others is replaced
    yield tmp_path
    for name in HOST:
        subprocess.run(["umount", "--recursive", "--lazy", tmp_path / name], check=True)


class ShellSession:
    """A shell in a nest that runs a line and reports when it is done."""

    def __init__(self, container: SlimContainer, tools: pathlib.Path, *binding: str) -> None:
        words = ["--tools", str(tools), "--transport", "fuse", *binding, str(container.pid)]
        script = 'while read line; do eval "$line"; echo "="; done'
        self.process = subprocess.Popen(
            [*CNTR, "attach", *words, "--", "/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self, line: str) -> list[str]:
        """The output of a line of shell."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        lines = []
        while (said := self.process.stdout.readline().decode()) != "=\n":
            assert said, "the session has ended"
            lines.append(said.rstrip("\n"))
        return lines

    def processes(self, name: str = "") -> list[int]:
        """The session's processes by the host's pids, only those called NAME if given."""
        found = [self.process.pid]
        for pid in found:
            for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return [pid for pid in found if not name or pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == name]

    def mounts(self) -> list[tuple[str, str]]:
        """(mount id, mount point) of the nest's mounts, as the command sees them."""
        shell = self.processes("sh")[-1]
        return [
            (fields[0], fields[4]) for fields in map(str.split, procfs.read(f"/proc/{shell}/mountinfo").splitlines())
        ]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


def seen(session: ShellSession, line: str, expected: list[str]) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while (answer := session(line)) != expected:
        assert time.monotonic() < deadline, f"{line}: {answer}, not {expected}"
        time.sleep(0.02)


def until_watched(session: ShellSession) -> None:
    """Trigger the watch, which starts with the first request after the session's first second."""
    deadline = time.monotonic() + 20
    while not session.processes("cntrfs-watch"):
        assert time.monotonic() < deadline, "nothing is watched"
        session("ls / /room >/dev/null")
        time.sleep(0.1)


def overflow(session: ShellSession, directory: pathlib.Path) -> None:
    """Make more changes than fanotify queues, so that later events are lost until the queue is read."""
    limit = int(pathlib.Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    (helper,) = session.processes("cntrfs-watch")
    os.kill(helper, signal.SIGSTOP)
    try:
        fd = os.open(directory, os.O_PATH)
        for number in range(limit + 100):
            os.mknod(f"{number:06d}", 0o100644, dir_fd=fd)
        os.close(fd)
        (directory.parent / "lost").touch()
    finally:
        os.kill(helper, signal.SIGCONT)


@pytest.mark.timeout(300)
def test_mounts_outlast_what_is_told_of_changes(tools: pathlib.Path) -> None:
    """After changes of mount points and an overflow, all changes are visible and the nest's mounts are unchanged."""
    if not pathlib.Path("/proc/sys/fs/fanotify").is_dir():
        pytest.skip("the kernel lacks fanotify")
    with SlimContainer("coherent") as container:
        session = ShellSession(container, tools)
        try:
            assert session("echo begun") == ["begun"]
            (shell,) = session.processes("sh")[-1:]
            enter = ["nsenter", "-t", str(shell), "--mount", "--root", "--wd=/"]
            subprocess.run([*enter, "mount", "-t", "tmpfs", "over", "/over"], check=True)
            session("echo kept > /over/file")
            before = session.mounts()
            assert {"/over", "/proc", "/var/lib/cntr"} <= {where for _, where in before}
            if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 2):
                pytest.skip("the kernel cannot expire an entry without dropping it (6.2), so there is no watch")
            until_watched(session)
            for turn in range(4):
                missing = f"test -e /room/new-{turn} && echo there || echo missing"
                assert session(missing) == ["missing"]
                (tools / "room" / f"new-{turn}").touch()
                seen(session, missing, ["there"])
                for name in ("over", "proc", "dev", "var/lib/cntr", "var/lib", "."):
                    os.utime(tools / name)
                    os.chmod(tools / name, 0o755)
                    (tools / name / "made").mkdir()
                    (tools / name / "made").rename(tools / name / "renamed")
                    (tools / name / "renamed").rmdir()
                lost = f"test -e /room-{turn}/lost && echo there || echo missing"
                (tools / f"room-{turn}" / "many").mkdir(parents=True)
                seen(session, f"ls /room-{turn}", ["many"])
                assert session(lost) == ["missing"]
                overflow(session, tools / f"room-{turn}" / "many")
                seen(session, lost, ["there"])
                assert session.mounts() == before, turn
                assert session(
                    "cat /over/file; test -e /var/lib/cntr/app && echo app; test -e /proc/self && echo proc"
                ) == [
                    "kept",
                    "app",
                    "proc",
                ]
        finally:
            session.end()
