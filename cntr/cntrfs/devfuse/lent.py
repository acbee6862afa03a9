"""Core operations run by a worker, on a filesystem that may block: a network's, or another FUSE server's.

The worker calls the same method of a core that was lent to it: with credentials of its own, and with copies of the
nodes in the request, each with an fd of its own. It does not touch the node table. What it would have recorded there
(files found, created, renamed and removed) is kept, and the serving thread records it (``Lent.settled``) before it
answers.
"""

from __future__ import annotations

import os

from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.fds import NO_FD
from cntr.cntrfs.files import FileHandle
from cntr.cntrfs.handles import O_PATH
from cntr.cntrfs.node import Node, stale
from cntr.linux import any_thread, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cntr.cntrfs.core import Core
    from cntr.linux.file_syscalls import Attributes


class _FoundFile:
    """A file that the worker found, for the table; ``fd`` is an O_PATH fd of it."""

    def __init__(self, attributes: Attributes, parent_id: int, name: bytes, fd: int) -> None:
        self.attributes, self.parent_id, self.name, self.fd = attributes, parent_id, name, fd
        self.lookups = 0
        self.nodeid = 0
        self.lent_fd = -1


class _OpenFile:
    """An open ``_FoundFile``, for ``OpenFiles.add``."""

    def __init__(self, seen: _FoundFile, fd: int, flags: int) -> None:
        self.seen, self.fd, self.flags = seen, fd, flags


class _Files:
    """The part of ``OpenFiles`` that an operation may use."""

    def __init__(self, core: Core) -> None:
        files = core.files
        self.backing_flags, self.handles, self.handle = files.backing_flags, files.handles, files.handle
        self.fd, self.writing_fd, self.demand_not_run = files.fd, files.writing_fd, files.demand_not_run

    @staticmethod
    def open_file(path: bytes, wanted: int, flags: int) -> int:
        try:
            return os.open(path, wanted)
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
            return os.open(path, wanted | os.O_APPEND)  # an append-only file

    @staticmethod
    def add(seen: _FoundFile, fd: int, flags: int) -> _OpenFile:
        return _OpenFile(seen, fd, flags)


class _Table:
    """The part of the node table and its fds that an operation may use: the lent nodes only."""

    def __init__(self, core: Core, nodes: dict[int, Node]) -> None:
        self._nodes = nodes
        self.fds = self
        self.root = core.nodes.root
        self.mounts: Any = object.__new__(type(core.mounts))
        self.mounts.__dict__.update(core.mounts.__dict__)
        self.mounts.may_wait, self.mounts.calls = True, any_thread
        self.looked_at: list[_FoundFile] = []
        self.seen: list[_FoundFile] = []
        self.victims: list[_FoundFile] = []
        self.renamed_to: list[_FoundFile] = []
        self.named: list[tuple[int, int, bytes]] = []
        self.unpinned: list[int] = []

    def get(self, nodeid: int) -> Node:
        node = self._nodes.get(nodeid)
        if node is None:
            raise stale()
        return node

    known = get

    def fd(self, node: Node) -> int:
        return node.fd

    own_fd = fd

    @staticmethod
    def retrying(opener: Callable[[], int]) -> int:
        return opener()

    @staticmethod
    def open_retrying(path: bytes, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC)

    def _look(self, attributes: Attributes, parent: Node, fd: int, name: bytes) -> _FoundFile:
        """The file NAME in the directory FD, or FD itself, as an O_PATH fd. ESTALE: the name is another file's by now."""
        seen = _FoundFile(attributes, parent.nodeid, name, -1)
        self.looked_at.append(seen)
        try:
            opened = os.open(name, O_PATH, dir_fd=fd) if name else self.open_retrying(proc_path(fd), os.O_PATH)
        except OSError as error:
            if error.errno not in NO_FD or not name:
                raise
            return seen  # the operation succeeded; the table looks the name up
        seen.fd = opened
        found = any_thread.statx(opened)
        if (found.ino, found.mnt_id, found.btime_ns) != (attributes.ino, attributes.mnt_id, attributes.btime_ns):
            raise stale()
        return seen

    def see(self, attributes: Attributes, parent: Node, parent_fd: int, name: bytes) -> _FoundFile:
        seen = self._look(attributes, parent, parent_fd, name)
        self.seen.append(seen)
        if attributes.mnt_id != parent.mount.mnt_id and seen.fd >= 0:
            os.fstatvfs(seen.fd)  # another filesystem: more calls to it follow
        return seen

    def find(self, attributes: Attributes, parent: Node, name: bytes) -> None:
        """The name is removed: keep the file reachable if it is known."""
        self.victims.append(self._look(attributes, parent, parent.fd, name))

    def renamed(self, attributes: Attributes, parent: Node, name: bytes) -> None:
        self.renamed_to.append(_FoundFile(attributes, parent.nodeid, name, -1))

    def moved(self, node: Node, parent: Node, name: bytes) -> None:
        self.named.append((node.nodeid, parent.nodeid, name))

    def unpin(self, node: Node) -> None:
        self.unpinned.append(node.nodeid)

    @staticmethod
    def pin(seen: _FoundFile, fd: int) -> None:
        os.close(fd)  # it has one already


class Lent:
    """One request's core. The worker calls ``act``; the serving thread calls the rest."""

    def __init__(self, core: Core, nodes: list[Node]) -> None:
        """nodes: those in the request. Raises OSError (EMFILE)."""
        self._core = core
        self._nodes: dict[int, Node] = {}
        self._had = {node.nodeid: node.lookups for node in nodes}
        self._table = _Table(core, self._nodes)
        try:
            for node in nodes:
                if node.nodeid not in self._nodes:  # a rename may name the same directory twice
                    self._nodes[node.nodeid] = self._copy(node)
        except OSError:
            self.close()
            raise

    def _copy(self, node: Node) -> Node:
        copy = object.__new__(Node)
        for slot in Node.__slots__:
            setattr(copy, slot, getattr(node, slot))
        fds = self._core.fds
        copy.fd = copy.lent_fd = -1
        if node.fd >= 0 or node.lent_fd >= 0 or node.handle is None or node.mount.fd < 0:
            copy.fd = fds.retrying(lambda: os.dup(fds.fd(node)))
        copy.pinned = True
        return copy

    def act(self, do: Callable[[Core], Any]) -> Any:
        """Call DO with the lent core. Raises OSError as the core does."""
        core = self._core
        syscalls.unshare(syscalls.CLONE_FS)  # the umask is shared by all threads otherwise
        for node in self._nodes.values():
            if node.fd < 0:
                self._reopen(node)
        lent: Any = object.__new__(type(core))
        lent.__dict__.update(core.__dict__)
        lent.nodes = lent.fds = self._table
        lent.mounts, lent.files, lent.calls = self._table.mounts, _Files(core), any_thread
        lent.credentials = object.__new__(type(core.credentials))
        lent.credentials.__dict__.update(core.credentials.__dict__)
        lent.xattrs = type(core.xattrs)(lent.nodes, core.options, lent.credentials)
        try:
            return do(lent)
        except BaseException:
            self.close()
            raise

    def _reopen(self, node: Node) -> None:
        handle = node.handle
        assert handle is not None
        fd = self._core.mounts.open_by_handle(node.mount, handle, shared=False)
        found = any_thread.statx(fd)
        if found.ino != node.ino or found.btime * 1_000_000_000 + found.btime_ns != node.birth:
            os.close(fd)
            raise stale()
        node.fd = fd

    def settled(self, result: Any) -> Any:
        """Record in the table what the worker saw and did; return RESULT with the table's own nodes."""
        core, table = self._core, self._table
        try:
            known = {id(seen): self._see(seen) for seen in table.seen}
            pinned = [self._keep_reachable(seen) for seen in table.victims]
            for nodeid in table.unpinned:
                core.fds.unpin(core.nodes.get(nodeid))
            for nodeid, parent_id, name in table.named:
                core.nodes.moved(core.nodes.get(nodeid), core.nodes.get(parent_id), name)
            for seen in table.renamed_to:
                node = core.nodes.renamed(seen.attributes, core.nodes.get(seen.parent_id), seen.name)
                if node is not None and node in pinned:
                    core.fds.unpin(node)  # two names of one file: rename does nothing
            if isinstance(result, FileHandle):
                result.node = core.nodes.get(result.node.nodeid)
            return tuple(self._own(part, known) for part in result) if type(result) is tuple else result
        finally:
            self.close()

    @staticmethod
    def _taken(seen: _FoundFile) -> int:
        fd, seen.fd = seen.fd, -1
        return fd

    def _keep_reachable(self, seen: _FoundFile) -> Node | None:
        parent = self._core.nodes.get(seen.parent_id)
        if seen.fd < 0:
            return None  # no fd was free to keep it
        return self._core.keep_reachable(seen.attributes, parent, seen.name, lambda: self._taken(seen))

    def _see(self, seen: _FoundFile) -> Node:
        core = self._core
        fd = self._taken(seen)
        if fd < 0:
            parent = core.nodes.get(seen.parent_id)
            node = core.nodes.see(seen.attributes, parent, core.fds.fd(parent), seen.name)
            node.lookups += seen.lookups
            return node
        try:
            node = core.nodes.see(seen.attributes, core.nodes.get(seen.parent_id), fd, seen.name, True)
        except OSError:
            os.close(fd)
            raise
        node.lookups += seen.lookups
        core.fds.adopt(node, fd)
        if not seen.attributes.nlink:
            core.fds.pin(node)
        return node

    def _own(self, part: Any, known: dict[int, Node]) -> Any:
        if isinstance(part, _FoundFile):
            return known[id(part)]
        if isinstance(part, _OpenFile):
            return self._core.files.add(known[id(part.seen)], part.fd, part.flags)
        if isinstance(part, Node):
            node = self._core.nodes.get(part.nodeid)
            if node is not part:
                node.lookups += part.lookups - self._had[part.nodeid]
            return node
        return part

    def close(self) -> None:
        """Close the fds that are left."""
        fds = [self._taken(seen) for seen in self._table.looked_at]
        for node in self._nodes.values():
            fds.append(node.fd)
            node.fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
