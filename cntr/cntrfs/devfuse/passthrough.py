"""FUSE_PASSTHROUGH: the kernel reads, writes and maps the backing file itself (kernel 6.9, CAP_SYS_ADMIN).

All opens of one inode must agree: the kernel answers EIO to an open without passthrough while another has it. So the
decision is made per node, at its first open, and kept until its last release; one backing id serves all opens. The id
stays for the next open while the node keeps its fd: registering a file takes longer than the rest of an open.

An O_PATH fd is registered. The kernel reopens the file for each open of a client, and keeps what it was given: an open
file of the server's would live on, with its flock(2) lock, and a program could not be executed while it is open.
"""

from __future__ import annotations

import errno
import os
import stat

from cntr.cntrfs import log
from cntr.cntrfs.backing import proc_path
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.notify import notify
from cntr.cntrfs.node import OpenState
from cntr.linux import file_syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.cntrfs.core import Core
    from cntr.cntrfs.node import Node

_SETID = stat.S_ISUID | stat.S_ISGID


class Passthrough:
    """The backing ids of one connection."""

    def __init__(self, fuse_fd: int, core: Core) -> None:
        """enabled: from ``begin`` on."""
        self.fd = fuse_fd
        self.core = core
        self.enabled = False
        #: Node ids of files that a client may have mapped for writing. Then the kernel writes to the backing file
        #: without notice, even after the file was closed: times and blocks of these files must not be cached.
        self.mapped: set[int] = set()
        core.fds.on_close = self._node_closed

    def begin(self) -> None:
        """INIT has agreed on it."""
        self.enabled = True
        self.core.credentials.be_frugal()

    def may_be_mapped(self, node: Node) -> None:
        """The file is open for reading and writing with passthrough: attributes cached by the kernel may become stale."""
        if node.nodeid not in self.mapped:
            self.mapped.add(node.nodeid)
            # The client holds the inode, so this does not block.
            notify(self.fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(node.nodeid, -1, 0))

    def opened(self, node: Node, fd: int, mode: int, *, writes: bool = False) -> int:
        """Count an open of the node, whose file is behind fd, for writing or not; return its
        backing id, 0 if it has none.
        """
        files = node.open
        if files is not None and not files.count and mode & _SETID:
            self._forget(node)
            files = None
        if files is None:
            files = node.open = OpenState(self._register(node, fd, mode, writes) if self.enabled else 0)
        files.count += 1
        return files.backing_id

    def prepare(self, node: Node, fd: int, mode: int) -> None:
        """Register the node's file ahead of ``opened``."""
        if node.open is None:
            node.open = OpenState(self._register(node, fd, mode, writes=False))

    def _register(self, node: Node, fd: int, mode: int, writes: bool) -> int:
        # Whether a write clears set-id bits depends on the writer, but the kernel writes with the credentials of the
        # registration. So the server writes these files.
        if not stat.S_ISREG(mode) or mode & _SETID or node.mount.is_pseudo:
            return 0
        try:
            if fd != node.fd:  # keep an fd, and with it the backing id: new files are often reopened
                fd = self.core.nodes.fd_while_open(node)
            if not writes or node.mount.silent_fd < 0 or not node.has_derived_handle:
                return self._backing_open(fd, node)
            path_fd = self.core.nodes.open_silently(node)
        except OSError:  # removed or renamed: only the open file leads to it
            path_fd = self.core.fds.open_retrying(proc_path(fd), os.O_PATH)
        try:
            return self._backing_open(path_fd, node)
        finally:
            os.close(path_fd)

    def _backing_open(self, path_fd: int, node: Node) -> int:
        try:
            # Set-id bits that a file gets while it is open must be cleared. A network filesystem also checks the
            # writer: the server is allowed.
            credentials = self.core.credentials
            with credentials.without_fsetid() if node.mount.is_remote else credentials.registering():
                return file_syscalls.ioctl_number(
                    self.fd, wire.DEV_IOC_BACKING_OPEN, wire.BACKING_MAP.pack(path_fd, 0, 0)
                )
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTTY):
                log.info("no passthrough here: %s", error.strerror)
                self.enabled = False
            # ELOOP: a stacked filesystem below (overlay). That file goes through the server.
            return 0

    def released(self, node: Node) -> None:
        """Count the end of an open."""
        files = node.open
        if files is not None:
            files.count -= 1
            if not files.count and node.fd < 0:
                self._forget(node)

    def _node_closed(self, node: Node) -> None:
        if node.open is not None and not node.open.count:
            self._forget(node)

    def _forget(self, node: Node) -> None:
        files, node.open = node.open, None
        if files is not None and files.backing_id:
            try:
                with self.core.credentials.raised():
                    file_syscalls.ioctl_number(
                        self.fd, wire.DEV_IOC_BACKING_CLOSE, files.backing_id.to_bytes(4, "little")
                    )
            except OSError as error:
                log.warning("closing a backing id: %s", error)

    def close(self) -> None:
        """Drop the state; the kernel drops all backing ids with the connection."""
        self.enabled = False
        self.core.fds.on_close = lambda node: None
