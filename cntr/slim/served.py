"""CntrFS as the root of a run: only what is kept is visible, and every failed lookup is noted.

The served tree is the whole image's. ``shown`` holds the paths that the slim image has; None serves everything and notes all uses, which is
how a run is recorded where fanotify is not to be had (rootless), stat-only use and links passed included.
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
DT_DIR = 4  # of . and .. too
MODE = file_syscalls.Attributes._fields.index("mode")


class SlimCore(Core):
    """The core, with eyes: it knows each node's path and writes down what is done with it."""

    def __init__(
        self, root_fd: int, options: Options, shown: set[str] | None, hidden: frozenset[str], notes: int, grow: bool
    ) -> None:
        """notes: fd of the file that lines go to; grow: what was looked up in vain is there from then on, but for HIDDEN."""
        super().__init__(root_fd, options)
        self.shown, self.hidden, self.notes, self.grow = shown, hidden, notes, grow
        self.paths = {1: ""}
        self.noted: set[tuple[str, str]] = set()

    def note(self, kind: str, path: str) -> None:
        """One line for each new use."""
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
        """LOOKUP, of what the slim image has."""
        found = super().lookup_entry(parent_id, name)
        if found is None:
            return None
        path = self._named(parent_id, name)
        if not self._is_shown(path, found[3][MODE]):
            self.nodes.forget(found[0], 1)
            return None
        self.paths[found[0]] = path
        if self.shown is None:
            self.note("name", path)
        return found

    def open(self, nodeid: int, flags: int, killpriv: Caller | None = None) -> int:
        """OPEN."""
        if self.shown is None:
            self.note("open", self.paths.get(nodeid, ""))
        return super().open(nodeid, flags, killpriv)

    def entries(self, directory: DirectoryHandle, offset: int) -> Iterator[DirectoryEntry]:
        """READDIR, of what the slim image has."""
        here = self.paths.get(directory.node.nodeid, "")
        if self.shown is None:
            self.note("list", here)
        for entry in super().entries(directory, offset):
            name = f"{here}/{os.fsdecode(entry.name)}"
            if self.shown is None or entry.kind == DT_DIR or name in self.shown:
                yield entry


def serve(fuse_fd: int, root_fd: int, shown: set[str] | None, hidden: frozenset[str], notes: int, grow: bool) -> None:
    """Serve the mounted connection until it is unmounted; takes both fds over."""
    options = Options(fsname="cntr-slim", read_only=True, invalidate=False)
    options.passthrough = options.readdirplus = False  # neither works under an overlay of several layers
    options.entry_timeout = options.attr_timeout = 1.0
    options.timeouts_given = True
    core = SlimCore(root_fd, options, shown, hidden, notes, grow)
    FuseSession(fuse_fd, core, Heartbeat(), lambda: None).run()


def start(
    fuse_fd: int, mounted: int, root_fd: int, shown: set[str] | None, hidden: frozenset[str], notes: int, grow: bool
) -> int:
    """``serve`` in a process of its own, once a byte comes from MOUNTED; its pid. It ends with the last mount, and with us."""
    pid = os.fork()
    if pid:
        return pid
    try:
        import signal

        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        syscalls.set_process_name("cntrfs")
        if os.read(mounted, 1):  # reading /dev/fuse before it is mounted is EPERM
            serve(fuse_fd, root_fd, set(shown) if shown is not None else None, hidden, notes, grow)
    finally:
        os._exit(0)


def noted(fd: int) -> list[tuple[str, str]]:
    """(kind, path) of each line of the notes."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(os.dup(fd), "rb") as stream:
        lines = stream.read().splitlines()
    return [(kind.decode(), unescape(path)) for kind, _, path in (line.partition(b" ") for line in lines)]
