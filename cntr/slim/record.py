"""Records by fanotify what is opened, executed or listed on a container's root, from before its first instruction.

Each event carries an open file, whose path is read from /proc/self/fd. The mark is on the filesystem (a container's
overlay is one of its own), so the kernel's own opens are seen too: a script's interpreter, the dynamic linker. Lookups
without an open (stat, access, readlink) are not seen; ``verify`` finds which of these are needed.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time

from cntr.linux import fanotify
from cntr.slim.accesses import Accesses

MOST_PATHS = 1 << 20  # that a program makes up names without end is no use of the image
_PAUSE = 0.02  # seconds between two reads; the kernel queues events without limit
_SETTLE = 0.05
_MASK = fanotify.FAN_OPEN | fanotify.FAN_OPEN_EXEC | fanotify.FAN_ONDIR


class Recorder:
    """One recording."""

    def __init__(self) -> None:
        """Create a fanotify group. Raises OSError if that is not permitted: only root of the initial user namespace
        may.
        """
        self.accesses = Accesses()
        self.events = 0
        self.last = time.monotonic()  # when the last new path was seen
        self._group = fanotify.new_group()
        self._engines: list[str] = []
        self._device = -1
        self._stop, self._wake = os.pipe2(os.O_CLOEXEC)
        self._own = os.getpid()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def arm(self, root_fd: int) -> None:
        """Record from now on uses of the filesystem that ROOT_FD, the container's root directory, is on."""
        path = os.readlink(f"/proc/self/fd/{root_fd}")
        # Where the engine has it mounted: the engine itself looks there. The container's processes have it at "/".
        if path != "/":
            self._engines.append(path)
        self._device = os.fstat(root_fd).st_dev
        fanotify.mark_filesystem(self._group, _MASK, root_fd)

    @property
    def is_armed(self) -> bool:
        """Whether a root was marked."""
        return self._device >= 0

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            self._take()
            if self._stop in ready:
                return
            time.sleep(_PAUSE)

    def _take(self) -> None:
        for mask, fd, _ in fanotify.events(self._group):
            if fd < 0:
                self.accesses.lost = True
                continue
            try:
                self._note(mask, fd)
            except OSError:  # ENAMETOOLONG: a path of more than a page
                self.accesses.lost = True
            finally:
                os.close(fd)
            self.events += 1

    def _note(self, mask: int, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not path.startswith("/"):
            return
        st = os.fstat(fd)
        if not st.st_nlink:  # "… (deleted)": a temporary file of the application
            return
        if any(path == place or path.startswith(f"{place}/") for place in self._engines):
            return
        kind = "list" if stat.S_ISDIR(st.st_mode) else "exec" if mask & fanotify.FAN_OPEN_EXEC else "open"
        known = self.accesses.kinds.get(path)
        if known is None and len(self.accesses) >= MOST_PATHS:
            self.accesses.lost = True
        elif known is None or kind not in known:
            self.accesses.add(kind, path)
            self.last = time.monotonic()

    def quiet_for(self) -> float:
        """Seconds since a new path was seen."""
        return time.monotonic() - self.last

    def close(self) -> Accesses:
        """End the recording; return the accesses."""
        time.sleep(_SETTLE)
        os.write(self._wake, b"x")
        self._thread.join(10)
        self._take()
        for fd in (self._group, self._stop, self._wake):
            os.close(fd)
        return self.accesses


def of_processes(pid: int) -> Accesses:
    """What the processes of PID's container use at this moment: programs, libraries, open files, directories.

    For a running container: files that it opened and closed before are not visible any more.
    """
    found = Accesses()
    try:
        space = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return found
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if os.stat(f"/proc/{name}/ns/mnt").st_ino != space:
                continue
            _of_process(name, found)
        except OSError:
            continue  # it has ended
    return found


def _of_process(pid: str, found: Accesses) -> None:
    device = os.stat(f"/proc/{pid}/root").st_dev
    for link, kind in (("exe", "exec"), ("cwd", "list")):
        found.add(kind, os.readlink(f"/proc/{pid}/{link}"))
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            path = line.rstrip("\n").partition("/")[2]
            if path and not path.endswith(" (deleted)"):
                found.add("open", f"/{path}")
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = os.readlink(f"/proc/{pid}/fd/{fd}")
        if path.startswith("/") and not path.endswith(" (deleted)"):
            st = os.stat(f"/proc/{pid}/fd/{fd}")
            if st.st_dev == device:
                found.add("list" if stat.S_ISDIR(st.st_mode) else "open", path)
