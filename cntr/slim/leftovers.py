"""Cleans up: a guard process outlives this one and undoes what it made if it dies.

The guard reads lines of JSON from a pipe: ``["add", KEY, ARGV…]`` and ``["drop", KEY]``. When the pipe closes it runs
what was added and not dropped, last first. A normal end drops everything itself; after SIGKILL only the guard is left.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

REMOVE = "\0remove"  # in place of a program: remove a directory of ours
KILL = "\0kill"  # in place of a program: end a process and all below it, by pid and start time
CGROUPS = "\0cgroups"  # in place of a program: remove the empty cgroups of a name
_SECONDS = 60.0
_END_SECONDS = 5.0


class Guard:
    """The guard process, and the list of what is to be undone."""

    def __init__(self) -> None:
        self._undo: dict[str, list[str]] = {}
        reader, self._pipe = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._pipe)
                _wait(reader)
            finally:
                os._exit(0)
        os.close(reader)

    def add(self, key: str, argv: Sequence[str]) -> None:
        """Register ARGV to undo KEY."""
        self._undo[key] = list(argv)
        os.write(self._pipe, json.dumps(["add", key, *argv]).encode() + b"\n")

    def drop(self, key: str) -> None:
        """KEY was undone, or is to stay."""
        if self._undo.pop(key, None) is not None:
            os.write(self._pipe, json.dumps(["drop", key]).encode() + b"\n")

    def undo(self, key: str) -> None:
        """Undo KEY now."""
        argv = self._undo.get(key)
        if argv is not None:
            _run(argv)
            self.drop(key)

    def directory(self) -> str:
        """Create a private directory, which is removed at the end."""
        path = tempfile.mkdtemp(prefix="cntr-slim-")
        self.add(path, [REMOVE, path])
        return path

    def close(self) -> None:
        """Undo what is left, last first, and end the guard."""
        for key in reversed(list(self._undo)):
            self.undo(key)
        os.close(self._pipe)
        os.waitpid(self.pid, 0)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _wait(reader: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, reader)  # otherwise a reader of our caller's pipes would wait for the guard
    os.closerange(reader + 1, 1 << 12)
    undo: dict[str, list[str]] = {}
    with open(reader, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            word, key, *argv = json.loads(line)
            if word == "add":
                undo[key] = argv
            else:
                undo.pop(key, None)
    for argv in reversed(list(undo.values())):
        _run(argv)


def _run(argv: list[str]) -> None:
    if argv[0] == REMOVE:
        shutil.rmtree(argv[1], ignore_errors=True)
        return
    if argv[0] == KILL:
        end_process(int(argv[1]), int(argv[2]))
        return
    if argv[0] == CGROUPS:
        remove_cgroups(argv[1])
        return
    try:
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # the engine is gone, and what it held


def end_process(pid: int, start_time: int) -> None:
    """Kill the process with that pid and start time (field 22 of /proc/PID/stat), and what is below it: an OCI runtime's
    container, which does not end with the runtime.
    """
    from cntr.linux import procfs

    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if procfs.start_time(procfs.read(f"/proc/{pid}/stat")) == start_time:
            signal.pidfd_send_signal(fd, signal.SIGSTOP)  # so that it makes no more
            deadline = time.monotonic() + _END_SECONDS
            while (below := _below(str(pid))) and time.monotonic() < deadline:
                for child in below:
                    _kill(int(child))
                time.sleep(0.005)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return
    finally:
        os.close(fd)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def _below(top: str) -> list[str]:
    """The living processes below a process, by /proc/PID/stat."""
    from cntr.linux import procfs

    children: dict[str, list[tuple[str, str]]] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            state, parent = procfs.read(f"/proc/{pid}/stat").rpartition(") ")[2].split()[:2]
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append((pid, state))
    found, pending = [], [top]
    while pending:
        for pid, state in children.pop(pending.pop(), ()):
            pending.append(pid)
            if state not in "ZX":
                found.append(pid)
    return found


def remove_cgroups(name: str) -> None:
    """Remove the cgroups of that name at the top of each hierarchy, which a killed runtime leaves, once they are empty."""
    base = "/sys/fs/cgroup"
    try:
        places = {f"{base}/{name}", *(f"{base}/{hierarchy}/{name}" for hierarchy in os.listdir(base))}
    except OSError:
        return
    deadline = time.monotonic() + _END_SECONDS
    while (places := {place for place in places if not _removed(place)}) and time.monotonic() < deadline:
        time.sleep(0.01)


def _removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        return error.errno != errno.EBUSY
    return True
