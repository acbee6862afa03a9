"""CntrFS as the root of a run: only kept files are visible, and every failed lookup is recorded.

The whole image's tree is served. ``shown`` holds the paths of the slim image; None serves everything and records all
uses, including lookups and symbolic links passed: this is how a run is recorded without fanotify (rootless).
"""

from __future__ import annotations

import os
import stat

from cntr.cntrfs.core import Core
from cntr.cntrfs.devfuse.session import FuseSession
from cntr.cntrfs.heartbeat import Heartbeat
from cntr.cntrfs.node import BackingMount
from cntr.cntrfs.options import Options
from cntr.linux import file_syscalls, syscalls
from cntr.slim.accesses import escape, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cntr.cntrfs.backing import Caller
    from cntr.cntrfs.files import DirectoryHandle
    from cntr.linux.file_syscalls import DirectoryEntry

MISSED = "missed"
DT_DIR = 4  # also for . and ..
MODE, MAJOR, MINOR = (file_syscalls.Attributes._fields.index(name) for name in ("mode", "rdev_major", "rdev_minor"))
USUAL_DEVICES = frozenset(
    ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
)  # null zero full random urandom tty ptmx


class SlimCore(Core):
    """A core that knows each node's path and records its use."""

    def __init__(
        self, root_fd: int, options: Options, shown: set[str] | None, hidden: frozenset[str], notes: int, grow: bool
    ) -> None:
        """notes: fd of the file to write to; grow: a path whose lookup failed is visible from then on, except HIDDEN."""
        super().__init__(root_fd, options)
        self.shown, self.hidden, self.notes, self.grow = shown, hidden, notes, grow
        self.paths = {1: ""}
        self.noted: set[tuple[str, str]] = set()

    def note(self, kind: str, path: str) -> None:
        """Write one line for each new use."""
        if (kind, path) not in self.noted:
            self.noted.add((kind, path))
            os.write(self.notes, f"{kind} {escape(path or '/')}\n".encode())

    def _named(self, parent_id: int, name: bytes) -> str:
        return f"{self.paths.get(parent_id, '')}/{os.fsdecode(name)}"

    def _is_shown(self, path: str, mode: int) -> bool:
        if self.shown is None or path in self.shown or stat.S_ISDIR(mode):
            return True
        self.note(MISSED, path)
        if not self.grow or path in self.hidden:
            return False
        self.shown.add(path)
        return True

    def lookup_entry(self, parent_id: int, name: bytes) -> tuple[int, int, BackingMount, tuple[int, ...]] | None:
        """LOOKUP in the slim image."""
        found = super().lookup_entry(parent_id, name)
        if found is None:
            return None
        path = self._named(parent_id, name)
        if _is_forbidden(found[3]) or not self._is_shown(path, found[3][MODE]):
            self.nodes.forget(found[0], 1)
            return None
        self.paths[found[0]] = path
        if self.shown is None:
            self.note("name", path)
        return found

    def open(self, nodeid: int, flags: int, caller: Caller) -> int:
        """OPEN."""
        if self.shown is None:
            self.note("open", self.paths.get(nodeid, ""))
        return super().open(nodeid, flags, caller)

    def entries(self, directory: DirectoryHandle, offset: int) -> Iterator[DirectoryEntry]:
        """READDIR in the slim image."""
        here = self.paths.get(directory.node.nodeid, "")
        if self.shown is None:
            self.note("list", here)
        for entry in super().entries(directory, offset):
            name = f"{here}/{os.fsdecode(entry.name)}"
            if self.shown is None or entry.kind == DT_DIR or name in self.shown:
                yield entry


def _is_forbidden(attributes: tuple[int, ...]) -> bool:
    """Whether it is a device of the machine's: an overlay and a runtime's mounts show it as one, nodev or not."""
    mode, device = attributes[MODE], (attributes[MAJOR], attributes[MINOR])
    return (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and device not in USUAL_DEVICES


def serve(fuse_fd: int, root_fd: int, shown: set[str] | None, hidden: frozenset[str], notes: int, grow: bool) -> None:
    """Serve the mounted connection until it is unmounted. Owns both fds."""
    options = Options(fsname="cntr-slim", read_only=True, invalidate=False)
    options.passthrough = options.readdirplus = False  # neither works under an overlay of several layers
    options.entry_timeout = options.attr_timeout = 1.0
    options.timeouts_given = True
    core = SlimCore(root_fd, options, shown, hidden, notes, grow)
    FuseSession(fuse_fd, core, Heartbeat(), lambda: None).run()


def start(
    fuse_fd: int, mounted: int, root_fd: int, shown: set[str] | None, hidden: frozenset[str], notes: int, grow: bool
) -> int:
    """Run ``serve`` in a child, once a byte arrives from MOUNTED; return its pid. It ends with the last mount, and with
    its parent.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        import signal

        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        syscalls.set_process_name("cntrfs")
        if os.read(mounted, 1):  # reading /dev/fuse before the mount fails with EPERM
            serve(fuse_fd, root_fd, set(shown) if shown is not None else None, hidden, notes, grow)
    finally:
        os._exit(0)


def noted(fd: int) -> list[tuple[str, str]]:
    """(kind, path) of each line written."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(os.dup(fd), "rb") as stream:
        lines = stream.read().splitlines()
    return [(kind.decode(), unescape(path)) for kind, _, path in (line.partition(b" ") for line in lines)]
