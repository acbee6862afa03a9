"""Thousands of attaches in a row, and hundreds of sessions at once; afterwards nothing may be left.

``nox -s soak -- --attaches 10000 --fuse 1000 --sessions 200``. The simultaneous sessions end in four ways: by
themselves, by SIGTERM, by SIGHUP, and by a SIGKILL of cntr. Each leaves a daemon that ignores all signals. Checked are
processes, zombies, mounts (here and in the container), fds, cgroups, files, keys, sockets.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cntr.linux import syscalls
from testkit.container import SlimContainer
from testkit.waiting import wait_until

REPOSITORY = str(Path(__file__).parents[1])
CNTR = [sys.executable, "-m", "cntr"]
MARK = "CNTR_SOAK"
OWN_PLACES = ("/var/tmp", "/dev/shm")  # each a tmpfs during a soak
PLACES = (*OWN_PLACES, "/run", "/var/lib", "/var/lib/cntr", "/root", "/etc")
SOMEBODYS_KEYS = 100  # other users of the machine have sessions too
SECONDS = 30.0  # for the kernel to release what is no longer used
DAEMON = "(trap '' HUP TERM INT; setsid sleep 600 </dev/null >/dev/null 2>&1 &) ; echo ready; read line"


class Traces:
    """The current state of everything that cntr could leave; two states are compared."""

    def __init__(self, container: SlimContainer, mark: str) -> None:
        self.container, self.mark = container, mark
        self.found = {
            "process": set(self._processes()),
            "mount": set(Path("/proc/self/mountinfo").read_text().splitlines()),
            "mount in the container": set(Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines()),
            "fd": set(self._fds()),
            "cgroup": set(self._cgroups()),
            "file": {f"{place}/{name}" for place in PLACES if os.path.isdir(place) for name in os.listdir(place)},
            "socket": {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()},
        }
        self.keys = self._keys()

    def _processes(self) -> Iterator[str]:
        """The processes of the container, with zombies, and all with our mark in their environment."""
        own = os.stat(f"/proc/{self.container.pid}/ns/pid")
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                inside = os.path.samestat(os.stat(f"/proc/{name}/ns/pid"), own)
                marked = f"{MARK}={self.mark}\0".encode() in Path(f"/proc/{name}/environ").read_bytes() + b"\0"
                if (inside or marked) and int(name) not in (self.container.pid, os.getpid()):
                    yield f"{name} {Path(f'/proc/{name}/comm').read_text().strip()}"
            except OSError:
                continue
        for child in Path(f"/proc/{self.container.pid}/task/{self.container.pid}/children").read_text().split():
            yield f"{child} is the container's"

    def _fds(self) -> Iterator[str]:
        for name in os.listdir("/proc/self/fd"):
            try:
                yield f"{name} {os.readlink(f'/proc/self/fd/{name}')}"
            except OSError:
                continue

    def _cgroups(self) -> Iterator[str]:
        """The members of the container's own cgroups, and the cgroups below."""
        for directory in own_cgroups(self.mark):
            members = Path(directory, "cgroup.procs").read_text().split()
            yield from (f"{directory}: {pid}" for pid in members if pid != str(self.container.pid))
            yield from (entry.path for entry in os.scandir(directory) if entry.is_dir())

    def _keys(self) -> int:
        """The number of root's keys and keyrings: a session's keyring must go with it."""
        rows = [line.split() for line in Path("/proc/key-users").read_text().splitlines()]
        return next((int(row[1]) for row in rows if row[0] == "0:"), 0)

    def left(self, before: Traces) -> list[str]:
        """What is new since BEFORE. In shared directories, files count by name."""
        found = [
            f"{kind} {one}"
            for kind, now in self.found.items()
            for one in sorted(now - before.found[kind])
            if kind != "file" or one.startswith(OWN_PLACES) or "cntr" in one.rpartition("/")[2]
        ]
        return found + ([f"{self.keys - before.keys} keys"] if self.keys > before.keys + SOMEBODYS_KEYS else [])


def own_cgroups(mark: str) -> list[str]:
    """The container's own cgroups, one in each hierarchy where one can be made."""
    tops = ["/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())]
    return [f"{top}/cntr-{mark}" for top in tops if os.path.exists(f"{top}/cntr-{mark}/cgroup.procs")]


def make_cgroups(container: SlimContainer, mark: str) -> None:
    """Put the container into cgroups of its own, which sessions then join."""
    for top in ("/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())):
        directory = Path(top, f"cntr-{mark}")
        try:
            if os.path.exists(f"{top}/cgroup.procs"):
                directory.mkdir()
                (directory / "cgroup.procs").write_text(str(container.pid))
        except OSError:  # a controller that must be configured first (cpuset)
            if directory.exists():
                directory.rmdir()


def stand_apart() -> None:
    """Enter a mount and a network namespace of our own, so that other users of the machine do not disturb the
    comparison. Raises OSError.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    for place in OWN_PLACES:
        syscalls.mount("tmpfs", place, "tmpfs", 0, "mode=1777")
    os.environ["TMPDIR"] = OWN_PLACES[0]


def environment(mark: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": REPOSITORY, MARK: mark}


def one_after_the_other(container: SlimContainer, mark: str, transport: str, count: int) -> float:
    """Attach COUNT times; return the seconds per attach. Raises CalledProcessError."""
    words = [*CNTR, "attach", str(container.pid), "--transport", transport, "--", "true"]
    begun = time.monotonic()
    for _ in range(count):
        subprocess.run(words, env=environment(mark), stdin=subprocess.DEVNULL, check=True, timeout=120)
    return (time.monotonic() - begun) / max(count, 1)


def at_once(container: SlimContainer, mark: str, transport: str, count: int) -> None:
    """Run COUNT sessions, all of which run before the first ends."""
    words = [*CNTR, "attach", str(container.pid), "--transport", transport, "--", "sh", "-c", DAEMON]
    crowd = []
    try:
        for _ in range(count):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            crowd.append(subprocess.Popen(words, env=environment(mark), **pipes))  # type: ignore[call-overload]
        for process in crowd:
            assert process.stdout
            if process.stdout.readline() != b"ready\n":
                raise SystemExit(f"a session did not start: status {process.wait(30)}")
        for number, process in enumerate(crowd):
            if number % 4:
                process.send_signal((0, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)[number % 4])
            else:
                process.communicate(b"\n", timeout=120)
    finally:
        for process in crowd:
            process.communicate(timeout=120)


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 if nothing is left. Runs in a process of its own, which enters namespaces."""
    parser = argparse.ArgumentParser(prog="nox -s soak --", description=__doc__)
    parser.add_argument("--attaches", type=int, default=10_000, help="one after the other, on the mount transport")
    parser.add_argument("--fuse", type=int, default=1_000, help="and on the fuse transport")
    parser.add_argument("--sessions", type=int, default=200, help="at once, on each")
    options = parser.parse_args(argv)
    mark = f"soak{os.getpid()}"
    stand_apart()
    try:
        return soak(options, mark)
    finally:
        for directory in own_cgroups(mark):
            wait_until(lambda path=Path(directory): not _members(path), "the cgroup is empty")  # type: ignore[misc]
            os.rmdir(directory)


def _members(directory: Path) -> str:
    return (directory / "cgroup.procs").read_text()


def soak(options: argparse.Namespace, mark: str) -> int:
    """Run the soak; 0 if nothing is left."""
    with SlimContainer() as container:
        make_cgroups(container, mark)
        one_after_the_other(container, mark, "mount", 1)  # the first one creates what stays: /var/lib/cntr, bytecode
        one_after_the_other(container, mark, "fuse", 1)
        before = Traces(container, mark)
        for transport, count in (("mount", options.attaches), ("fuse", options.fuse)):
            took = one_after_the_other(container, mark, transport, count)
            print(f"{transport}: {count} attaches, {took * 1000:.1f} ms each", flush=True)
            at_once(container, mark, transport, options.sessions)
            print(f"{transport}: {options.sessions} sessions at once", flush=True)
        try:
            wait_until(lambda: not Traces(container, mark).left(before), "nothing is left", SECONDS)
        except AssertionError:
            print("\n".join(["left:", *Traces(container, mark).left(before)[:40]]))
            return 1
    print("nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
