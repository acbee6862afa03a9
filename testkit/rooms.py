"""A room for a suite: private mount, pid and /tmp namespaces and a loop-backed ext4, which all disappear with it.

``enter`` restarts the calling runner inside the room. Mounts, loop devices and daemons end with it: the pid namespace's
init dies, and the loop devices detach with their last mount (LO_FLAGS_AUTOCLEAR).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cntr.linux import syscalls
from testkit.servers import REPOSITORY

_ROOM = "CNTR_SUITE_ROOM"


def enter(*kept: Path) -> Path:
    """Restart the program in new namespaces, then return the room's work directory. Needs root.

    kept: directories that are needed in the room, although it has its own /tmp; created if missing.
    """
    inside = os.environ.get(_ROOM)
    if inside:
        room = Path(inside)
        for directory in kept:
            directory.mkdir(parents=True, exist_ok=True)
        _private_tmp(room, [room, REPOSITORY, Path(sys.prefix), *kept])
        return room
    if os.geteuid() != 0:
        sys.exit("root is missing: mounting needs it")
    room = Path(tempfile.mkdtemp(prefix="cntr-suite-", dir=os.environ.get("CNTR_SUITE_SPACE", "/var/tmp")))
    room.chmod(0o755)
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    module = sys.modules["__main__"].__spec__
    assert module is not None
    environment = os.environ | {_ROOM: str(room), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [*command, sys.executable, "-m", module.name, *sys.argv[1:]], env=environment, preexec_fn=_die_with_parent
    )
    signal.signal(signal.SIGTERM, lambda *_: process.kill())
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        status = process.wait()
    finally:
        release_loops(room)
        _remove(room)
    sys.exit(status)


def _die_with_parent() -> None:
    """End the room (unshare --kill-child) even if its runner is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _private_tmp(room: Path, kept: list[Path]) -> None:
    """Mount the room's own /tmp; kept directories of the covered one stay at their paths."""
    (room / "tmp").mkdir(exist_ok=True)
    (room / "tmp").chmod(0o1777)
    below = sorted({path.resolve() for path in kept if path.resolve().is_relative_to("/tmp")})  # the outer one first
    clone = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
    trees = [(path, syscalls.open_tree(syscalls.AT_FDCWD, str(path), clone)) for path in below]
    subprocess.run(["mount", "--bind", room / "tmp", "/tmp"], check=True)
    for path, tree in trees:
        path.mkdir(parents=True, exist_ok=True)
        syscalls.move_mount(tree, syscalls.AT_FDCWD, str(path))
        os.close(tree)
    os.environ["TMPDIR"] = "/tmp"
    tempfile.tempdir = None


def _remove(room: Path) -> None:
    for _ in range(50):
        shutil.rmtree(room, ignore_errors=True)
        if not room.exists():
            return
        time.sleep(0.1)
    print(f"could not remove {room}", file=sys.stderr)


def ext4(room: Path, name: str, size: str = "2G") -> Path:
    """A fresh loop-backed ext4 mounted at ROOM/NAME."""
    image, target = room / f"{name}.img", room / name
    with open(image, "wb") as file:
        file.truncate(_bytes(size))
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    target.mkdir(mode=0o755)
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    target.chmod(0o755)
    return target


def loop_device(room: Path, name: str, size: str = "2G") -> str:
    """A loop device over a fresh file; detached by ``release_loops``."""
    image = room / f"{name}.img"
    with open(image, "wb") as file:
        file.truncate(_bytes(size))
    found = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def release_loops(room: Path) -> None:
    """Detach this room's loop devices."""
    listed = subprocess.run(
        ["losetup", "--list", "--noheadings", "-O", "NAME,BACK-FILE"], capture_output=True, text=True
    )
    for line in listed.stdout.splitlines():
        device, _, file = line.partition(" ")
        if file.strip().startswith(f"{room}/"):
            subprocess.run(["losetup", "--detach", device], check=False)


def _bytes(size: str) -> int:
    return int(size[:-1]) << {"M": 20, "G": 30}[size[-1]]


def overlay(room: Path, directory: str) -> None:
    """Make DIRECTORY writable in the room only: an overlay protects the host's."""
    upper, work = room / f"upper{directory.replace('/', '-')}", room / f"work{directory.replace('/', '-')}"
    upper.mkdir()
    work.mkdir()
    options = f"lowerdir={directory},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, directory], check=True)


def run_limited(
    command: list[str], seconds: float, cwd: Path, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """(exit status, output); the status is None if the time ran out and the whole process group was killed."""
    with tempfile.TemporaryFile() as output:  # not a pipe: a daemon that keeps it open would block us
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
            _kill_session(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _kill_session(session: int) -> None:
    """Kill everything the command started, including other process groups."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                fields = stat.read().rsplit(b")", 1)[1].split()
            if int(fields[3]) == session:
                os.kill(int(name), signal.SIGKILL)
        except (OSError, IndexError):
            continue
