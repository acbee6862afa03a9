"""Tells the kernel about changes behind the mount, so that it may cache entries and attributes for long.

A helper process reads fanotify events of the served tree's local filesystems and writes invalidations to the
connection. It is a separate process because a notification can wait for a lock that a client holds while it waits for
the server. It dies with the server (PR_SET_PDEATHSIG), because its copy of the fd keeps the connection alive.

The server's own changes are recognized by its pid and skipped: the kernel knows them. After an overflow everything is
invalidated; after a mount or unmount, the name of its mount point. Mounts on top of CntrFS itself survive this: entries
are expired, not dropped, unless their file was removed.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import array
import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import OrderedDict

from cntr.cntrfs import log
from cntr.cntrfs.devfuse import wire
from cntr.cntrfs.devfuse.notify import notify
from cntr.cntrfs.devfuse.silent import SilentMounts
from cntr.cntrfs.node import BackingMount, Node
from cntr.linux import fanotify, file_syscalls, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cntr.cntrfs.core import Core
    from cntr.cntrfs.devfuse.mount_table import MountTable

#: Local filesystems all of whose changes go through this kernel's VFS: ext2-4, XFS, tmpfs, F2FS (linux/magic.h). A
#: network filesystem changes elsewhere; btrfs and overlay report other ids than those of their inodes.
WATCHABLE = frozenset((0xEF53, 0x58465342, 0x01021994, 0xF2F52010))
_ENTRY_EVENTS = fanotify.FAN_CREATE | fanotify.FAN_DELETE | fanotify.FAN_MOVED_FROM | fanotify.FAN_MOVED_TO
_MOVES = fanotify.FAN_MOVED_FROM | fanotify.FAN_MOVED_TO
# What is written through a mapping is told by nothing but the close that follows the last unmapping.
_MASK = (
    _ENTRY_EVENTS
    | fanotify.FAN_MODIFY | fanotify.FAN_ATTRIB | fanotify.FAN_CLOSE_WRITE | fanotify.FAN_ONDIR
)  # fmt: skip
_METADATA = struct.Struct("=IBBHQii")  # event_len vers reserved metadata_len mask fd pid
_INFO = struct.Struct("=BxH8sIi")  # type len fsid handle_bytes handle_type
_INFO_FID, _INFO_DFID_NAME, _INFO_DFID = 1, 2, 3
_MOUNT = struct.Struct("=8sQQQ")  # fsid, base; inode number and node id of an alias
_PACE = 0.01  # seconds between two invalidations of a file that is being written
#: Seconds between two reads of events. They merge in the kernel meanwhile, so a filesystem under constant writes costs
#: no more than this many wake-ups.
_REST = 0.002
#: Seconds after which a moved name is told again: a client that was just being answered takes the old answer for the one
#: that follows the expiry, and keeps it. (An unlink or creation waits with the lock of the directory, so it has no such race.)
_SETTLED = 0.2
_MOST_MOVED = 65536
# seconds for a pending notification: it may wait for a client, and the client for the connection's end
_LAST_WORDS = 1.0
_EXPIRE_ONLY = 1
FLUSH = b"f"


class Watch:
    """The server's side: which filesystems are watched."""

    def __init__(self, fuse_fd: int, core: Core, expire_only: bool) -> None:
        """Start the helper. Raises OSError without fanotify, RuntimeError if no thread can be started: then nothing is
        watched.
        """
        from cntr.cntrfs.devfuse.mount_table import MountTable  # a short session does without

        self.core = core
        self.fuse_fd = fuse_fd
        # Before the first file is watched: a helper that starts late must know what is new.
        mount_table, server = MountTable(core.nodes.root.mount.mnt_id), os.getpid()
        try:
            self.group = fanotify.new_naming_group()
        except OSError:
            mount_table.close()
            raise
        self._silent = SilentMounts(self.group)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._is_closing = False
        self._flusher = threading.Thread(target=self._flush_when_asked, name="flush", daemon=True)
        try:
            self._flusher.start()
            self.pid = os.fork()
        except (OSError, RuntimeError):
            self._is_closing = True  # the flushing thread ends when the other end of the socket closes
            theirs.close()
            if self._flusher.is_alive():
                self._flusher.join()
            self._socket.close()
            os.close(self.group)
            mount_table.close()
            raise
        if self.pid == 0:
            self._socket.close()
            _run_helper(fuse_fd, self.group, theirs, server, expire_only, mount_table)
        theirs.close()
        mount_table.close()
        for mount in list(core.nodes.mounts.all):
            self.add(mount)
        core.nodes.mounts.on_new_mount = self._add_later

    def _add_later(self, mount: BackingMount) -> None:
        with self.core.credentials.raised():
            self.add(mount)

    def add(self, mount: BackingMount) -> None:
        """Watch a mount's filesystem if possible: ``mount.watched``. Of a mounted file, only note that it is in the tree."""
        file = mount.node if mount.node and not mount.node.is_directory else None
        if mount.watched or mount.magic not in WATCHABLE or mount.is_synthetic:
            return
        if not file and (not mount.handles or mount.fd < 0):
            return
        alias = next(((ino, nodeid) for ino, nodeid in mount.aliases.items() if nodeid > 0), (0, 0))
        try:
            if not file:
                fanotify.mark_filesystem(self.group, _MASK, mount.fd)
            fsid = fanotify.filesystem_id(self.core.nodes.fds.fd(file) if file else mount.fd)
            rights = [] if file else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [mount.fd]))]
            self._socket.sendmsg([_MOUNT.pack(fsid, mount.base, *alias)], rights)
        except OSError as error:
            log.info("changes behind the mount are not watched on device %d: %s", mount.dev, error)
            return
        mount.watched = not file
        if file:
            self._silent.note(mount, fsid)
        elif self.core.options.passthrough and not self.core.options.read_only:
            self._silent.add(mount, fsid)

    def _flush_when_asked(self) -> None:
        """Invalidate everything the kernel may have cached, each time the helper asks for it."""
        while True:
            try:
                if not self._socket.recv(1):
                    break
            except OSError:
                break
            self._flush()
        if self._is_closing:
            return
        for mount in list(self.core.nodes.mounts.all):  # the helper is gone: from now on use short timeouts
            mount.watched = False
        self.core.nodes.mounts.on_new_mount = lambda mount: None
        self._flush()

    def _flush(self) -> None:
        """Expire all cached entries and attributes. Never called from the serving thread.

        Not by FUSE_NOTIFY_INC_EPOCH, which would drop the entries, and with them whatever is mounted on them.
        """
        for node in self.core.nodes.directories():
            for name in _names(node, self.core.credentials.raised()):
                if self._is_closing:
                    return
                notify(self.fuse_fd, wire.NOTIFY_INVAL_ENTRY, _entry(node.nodeid, name, _EXPIRE_ONLY))
        for nodeid in self.core.nodes.ids():
            if self._is_closing:
                return
            notify(self.fuse_fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, 0, 0))

    def close(self) -> None:
        """End the helper and the flushing thread: afterwards the connection's fd number may be reused."""
        self._is_closing = True
        self.core.nodes.mounts.on_new_mount = lambda mount: None
        self._silent.close()
        os.close(self.group)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._flusher.join(_LAST_WORDS)
        self._socket.close()


def _names(node: Node, raised: contextlib.AbstractContextManager[None]) -> Iterator[bytes]:
    """The names in a directory; none if it is gone, because its own attributes are then invalidated.

    raised: the scope to open by handle in.
    """
    try:
        if node.handle is not None and node.mount.fd >= 0:
            with raised:
                fd = file_syscalls.open_by_handle(
                    node.mount.fd, node.handle, os.O_RDONLY | os.O_DIRECTORY, shared=False
                )
        else:
            fd = os.open(f"/proc/self/fd/{node.fd}", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    with contextlib.suppress(OSError):  # needs ownership or CAP_FOWNER
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NOATIME)  # our reading must not update the access time
    try:
        with os.scandir(fd) as entries:  # one at a time: there may be millions
            for entry in entries:
                yield os.fsencode(entry.name)
    except OSError:
        return
    finally:
        os.close(fd)


def _entry(nodeid: int, name: bytes, flags: int) -> bytes:
    return wire.INVAL_ENTRY_OUT.pack(nodeid, len(name), flags) + name + b"\0"


class Helper:
    """The helper process."""

    def __init__(
        self,
        fuse_fd: int,
        group: int,
        server: socket.socket,
        server_pid: int,
        expire_only: bool,
        mount_table: MountTable,
    ) -> None:
        """server_pid: its events are the mount's own; mount_table: as it was when the server began."""
        self.fuse_fd = fuse_fd
        self.group = group
        self.server = server
        self.server_pid = server_pid
        self.entry_flags = _EXPIRE_ONLY if expire_only else 0
        self.mounts: dict[bytes, list[tuple[int, int, int, int]]] = {}  # fsid -> (base, alias, its node id, mount fd)
        self.has_twins = False  # is a filesystem in the tree more than once? Each of its files is several nodes then
        self.paced: dict[int, float] = {}  # node id -> time of its last modification notice
        self.pending: set[int] = set()
        self.moved: OrderedDict[tuple[int, bytes], float] = OrderedDict()  # name -> when it is told of again
        self.mount_table = mount_table

    def run(self) -> None:
        """Run until killed."""
        poll = select.poll()
        poll.register(self.group, select.POLLIN)
        poll.register(self.server, select.POLLIN)
        poll.register(self.mount_table.fd, select.POLLPRI)
        self.mounts_changed()
        while True:
            for fd, _ in poll.poll(_PACE * 1000 if self.pending else _SETTLED * 1000 if self.moved else None):
                if fd == self.server.fileno():
                    self.read_mounts()
                elif fd == self.mount_table.fd:
                    self.mounts_changed()
                else:
                    self.read_events()
                    time.sleep(_REST)
            self.send_pending()

    def mounts_changed(self) -> None:
        """After a mount or unmount: invalidate the name of the mount point."""
        self.read_mounts()
        for fd, name in self.mount_table.changed():
            fsid, ino = fanotify.filesystem_id(fd), os.fstat(fd).st_ino
            for base, alias, nodeid, _ in self.mounts.get(fsid, []):
                parent = nodeid if ino == alias else base | ino
                notify(self.fuse_fd, wire.NOTIFY_INVAL_ENTRY, _entry(parent, name, self.entry_flags))

    def read_mounts(self) -> None:
        """Read what the server says about filesystems; end with the server."""
        while True:
            try:
                data, rights, _, _ = self.server.recvmsg(_MOUNT.size, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                os._exit(0)
            fsid, base, ino, nodeid = _MOUNT.unpack(data)
            fd = struct.unpack_from("=i", rights[0][2])[0] if rights else -1
            mounts = self.mounts.setdefault(fsid, [])
            mounts.append((base, ino, nodeid, fd))
            self.has_twins = self.has_twins or len(mounts) > 1

    def read_events(self) -> None:
        """Read one buffer of events; duplicates in it are notified once."""
        try:
            buffer = os.read(self.group, 65536)
        except OSError:
            return
        self.read_mounts()  # buffered events may concern a mount that the server found just before
        told: set[tuple[int, bytes]] = set()
        position = 0
        while position < len(buffer):
            length, _, _, skip, mask, _, pid = _METADATA.unpack_from(buffer, position)
            if mask & fanotify.FAN_Q_OVERFLOW:
                self.server.send(FLUSH)
            elif pid != self.server_pid or self.has_twins:
                self.event(mask, buffer[position + skip : position + length], told, is_own=pid == self.server_pid)
            position += length

    def event(self, mask: int, infos: bytes, told: set[tuple[int, bytes]], *, is_own: bool) -> None:
        """Notify the kernel of one event. It knows the mount's own events, unless the filesystem is in the tree twice."""
        position = 0
        while position + _INFO.size <= len(infos):
            kind, length, fsid, size, handle_type = _INFO.unpack_from(infos, position)
            start = position + _INFO.size
            handle = file_syscalls.Handle(handle_type, infos[start : start + size])
            name = infos[start + size : position + length].split(b"\0", 1)[0]
            position += max(length, 4)
            if kind not in (_INFO_FID, _INFO_DFID_NAME, _INFO_DFID) or (is_own and len(self.mounts.get(fsid, ())) < 2):
                continue
            for nodeid in self.nodeids(fsid, handle):
                if kind == _INFO_FID or name in (b".", b""):
                    self.tell_inode(nodeid, mask, told)
                elif mask & _ENTRY_EVENTS and (nodeid, name) not in told:
                    told.add((nodeid, name))
                    # A removed entry is dropped at once: its inode number may be in use again, and the kernel would
                    # keep the old file's node while it caches the name.
                    flags = 0 if mask & fanotify.FAN_DELETE and not is_own else self.entry_flags
                    notify(self.fuse_fd, wire.NOTIFY_INVAL_ENTRY, _entry(nodeid, name, flags))
                    if mask & _MOVES and len(self.moved) < _MOST_MOVED:
                        self.moved.pop((nodeid, name), None)
                        self.moved[nodeid, name] = time.monotonic() + _SETTLED
                    self.tell_inode(nodeid, fanotify.FAN_MODIFY, told)

    def tell_inode(self, nodeid: int, mask: int, told: set[tuple[int, bytes]]) -> None:
        """Invalidate attributes, and data if it was modified. For a file under constant writes this is rate-limited."""
        key = nodeid, b"\0m" if mask & fanotify.FAN_MODIFY else b"\0"
        if key in told:
            return
        told.add(key)
        if not mask & fanotify.FAN_MODIFY:
            notify(self.fuse_fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, -1, 0))
            return
        now = time.monotonic()
        if now - self.paced.get(nodeid, 0.0) < _PACE:
            self.pending.add(nodeid)
            return
        if len(self.paced) > 4096:
            self.paced.clear()
        self.paced[nodeid] = now
        notify(self.fuse_fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, 0, 0))

    def send_pending(self) -> None:
        """Send the notices that were delayed and are due now, and repeat those of moved names."""
        if not self.pending and not self.moved:
            return
        now = time.monotonic()
        while self.moved and now >= next(iter(self.moved.values())):
            (nodeid, name), _ = self.moved.popitem(last=False)
            notify(self.fuse_fd, wire.NOTIFY_INVAL_ENTRY, _entry(nodeid, name, self.entry_flags))
        due = {nodeid for nodeid in self.pending if now - self.paced.get(nodeid, 0.0) >= _PACE}
        self.pending -= due
        for nodeid in due:
            self.paced[nodeid] = now
            notify(self.fuse_fd, wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, 0, 0))

    def nodeids(self, fsid: bytes, handle: file_syscalls.Handle) -> list[int]:
        """The possible node ids of a file: one per mount of its filesystem."""
        mounts = self.mounts.get(fsid)
        if mounts is None:
            self.read_mounts()
            mounts = self.mounts.get(fsid, [])
        if not mounts:
            return []
        if handle.kind in (1, 2) and len(handle.data) in (8, 16):  # FILEID_INO32_GEN(_PARENT)
            ino = int.from_bytes(handle.data[:4], "little")
        else:
            try:
                fd = max(fd for _, _, _, fd in mounts)  # a mounted file has none
                fd = file_syscalls.open_by_handle(fd, handle, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                return []  # gone
            ino = os.fstat(fd).st_ino
            os.close(fd)
        return [nodeid if ino == alias else base | ino for base, alias, nodeid, _ in mounts]


def _run_helper(
    fuse_fd: int, group: int, server: socket.socket, server_pid: int, expire_only: bool, mount_table: MountTable
) -> None:
    """Run the helper; never returns."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if os.getppid() == server_pid:
            syscalls.set_process_name("cntrfs-watch")
            _close_others({0, 1, 2, fuse_fd, group, server.fileno(), mount_table.fd, mount_table.root_fd})
            Helper(fuse_fd, group, server, server_pid, expire_only, mount_table).run()
    except BaseException as error:  # noqa: BLE001  the helper has nobody to raise to
        log.error("the watch on the backing filesystems failed", exc_info=error)
    finally:
        os._exit(1)


def _close_others(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
