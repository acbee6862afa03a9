"""The contents of the node table: a file's identity, its node, and its mount and device."""

from __future__ import annotations

import errno
import os
import stat

from cntr.linux.file_syscalls import AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW, Attributes, Handle
from cntr.linux.named import NamedTuple

ROOT_ID = 1  # FUSE_ROOT_ID, linux/fuse.h
SYNTHETIC = 1 << 63  # node ids that are not made from an inode number
INO_BITS = 48
INO_MASK = (1 << INO_BITS) - 1
ENTRY = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT  # statx(2): the file of the name itself
FILEID_INO32_GEN = 1  # linux/exportfs.h; the handle is (inode number, generation), 32 bits each

#: proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, bpf, configfs, fusectl, binfmt_misc, efivarfs, selinuxfs
PSEUDO = frozenset((0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x64626720, 0x74726163, 0x73636673, 0xCAFE4A11,
                    0x62656570, 0x65735543, 0x42494E4D, 0xDE5E81E4, 0xF97CFF8C))  # fmt: skip

#: tmpfs, ramfs
MEMORY = frozenset((0x01021994, 0x858458F6))
AUTOFS_MAGIC = 0x0187
#: NFS, CIFS, SMB2, SMB, FUSE, 9P, Ceph, AFS (two), Coda, Lustre, GPFS, OCFS2, GFS2, OrangeFS, VirtualBox, autofs
REMOTE = frozenset((0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x65735546, 0x01021997, 0xC36400, 0x5346414F, 0x6B414653,
                    0x73757245, 0x0BD00BD3, 0x47504653, 0x7461636F, 0x01161970, 0x20030528, 0x786F4256, AUTOFS_MAGIC))  # fmt: skip

#: One int object per file type, for all nodes.
_KINDS = {kind: kind for kind in (0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000)}


class FileId(NamedTuple):
    """What a backing file is: the mount it is reached through, its device and inode number."""

    mnt_id: int
    dev: int
    ino: int


class BackingMount:
    """One (mount, device) pair of the served tree; ``base`` is the upper part of its node ids."""

    __slots__ = ("aliases", "any_generation", "base", "copies_up", "dev", "entry_flags", "fd", "forbids", "handles", "index",
                 "is_memory", "is_pseudo", "is_remote", "magic", "mnt_id", "node", "reads_wait", "silent_fd", "slow_until",
                 "watched")  # fmt: skip

    def __init__(self, mnt_id: int, dev: int, base: int, index: int) -> None:
        """index: its index in the table; handles: whether open_by_handle_at(2) works here, None until tried."""
        self.index = index
        self.mnt_id = mnt_id
        self.dev = dev
        self.base = base
        self.aliases: dict[int, int] = {}  # inode number -> node id, where base + ino is not possible
        self.handles: bool | None = None
        #: Generation 0 in a handle matches any (ext4): no file need be asked for its own. None: no file yet that has another one.
        self.any_generation: bool | None = False
        self.fd = -1  # an fd on this mount (not O_PATH) for open_by_handle_at
        self.node: Node | None = None  # the mounted directory
        self.take_magic(0)
        self.entry_flags = ENTRY  # flags of statx(2) for a name in one of its directories
        self.watched = False  # the kernel is told of changes behind the mount
        self.silent_fd = -1  # an fd on a copy of the mount whose writes are not reported (devfuse)
        self.copies_up = False  # an overlay: files change their inode number, device and birth time (copyup)
        self.forbids = 0  # ST_NOSUID, ST_NODEV, ST_NOEXEC of the mount, unless the FUSE mount has them itself
        self.reads_wait = False  # preadv2(2) does not support RWF_NOWAIT here
        self.slow_until = 0.0  # time.monotonic() until which the disk is considered slow (devfuse)

    def take_magic(self, magic: int) -> None:
        """Note the filesystem's f_type (linux/magic.h) and what follows from it."""
        self.magic = magic
        self.is_pseudo = magic in PSEUDO  # it generates its files' content on reading: sizes mean nothing
        self.is_memory = magic in MEMORY  # it keeps its files in memory only
        self.is_remote = magic in REMOTE  # an access may wait for another machine or another process

    def allowed(self, mode: int, major: int, minor: int) -> tuple[int, int, int]:
        """The mode and device number to show, without what the mount forbids.

        The kernel would honour them: it knows the flags of the one FUSE mount, not those of the mounts behind it.
        """
        kind = mode & 0o170000
        if kind == stat.S_IFREG and self.forbids & os.ST_NOSUID:
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK) and self.forbids & os.ST_NODEV:
            major = minor = 0  # no driver has this number: ENXIO
        return mode, major, minor

    @property
    def is_synthetic(self) -> bool:
        """Whether the mount's node ids are unrelated to inode numbers."""
        return self.base == SYNTHETIC


class OpenState:
    """How often a node is open, and how (devfuse)."""

    __slots__ = ("backing_id", "count")

    def __init__(self, backing_id: int) -> None:
        """backing_id: the kernel's number of the backing file; 0: the server reads and writes."""
        self.backing_id = backing_id
        self.count = 0


class Node:
    """A file the kernel knows; ``lookups`` counts how often it was returned and not yet forgotten."""

    __slots__ = ("birth", "fd", "generation", "ino", "is_parent", "kind", "lent_fd", "lookups", "mount", "name",
                 "nodeid", "open", "packed_handle", "parent", "pinned", "users")  # fmt: skip

    def __init__(self, nodeid: int, mount: BackingMount, attributes: Attributes) -> None:
        """kind: the S_IFMT bits; birth: statx's btime in ns, which detects a reused inode number."""
        self.nodeid = nodeid
        self.mount = mount
        self.ino = nodeid if nodeid == attributes.ino else attributes.ino  # usually one int object for both
        self.kind = _KINDS.get(attributes.mode & 0o170000, 0)
        self.birth = attributes.btime * 1_000_000_000 + attributes.btime_ns
        self.generation = 0
        # True: derived from ino and generation, which saves 100 bytes per node
        self.packed_handle: Handle | bool = False
        self.lookups = 0
        self.rest()

    def rest(self) -> None:
        """Reset the state of an unused node."""
        self.parent: Node | None = None  # parent and name are kept only if there is no handle
        self.name = b""
        self.is_parent = False  # another node refers to it
        self.users = 0  # count of open files and directories
        self.fd = -1
        self.lent_fd = -1  # of the open file that created it
        self.pinned = False  # the fd is the only way to the file, which has no name any more
        self.open: OpenState | None = None  # the devfuse binding's state of open files

    @property
    def handle(self) -> Handle | None:
        """The file handle to reopen the file by, None if there is none."""
        if self.packed_handle is True:
            return derived_handle(self.ino, 0 if self.mount.any_generation else self.generation)
        return self.packed_handle or None

    @handle.setter
    def handle(self, handle: Handle | None) -> None:
        self.packed_handle = handle or False

    @property
    def has_derived_handle(self) -> bool:
        """Whether the handle consists of inode number and generation only."""
        return self.packed_handle is True

    @property
    def id(self) -> FileId:
        """The node's identity."""
        return FileId(self.mount.mnt_id, self.mount.dev, self.ino)

    @property
    def is_directory(self) -> bool:
        """Directories can be reopened by ``..`` and serve as parents."""
        return self.kind == stat.S_IFDIR


def derived_handle(ino: int, generation: int) -> Handle:
    """The file handle on filesystems that derive it from inode number and generation."""
    return Handle(FILEID_INO32_GEN, ino.to_bytes(4, "little") + generation.to_bytes(4, "little"))


def generation_of(birth: int) -> int:
    """A generation made from a birth time (ns), where the file's own is not needed: it differs for a reused inode
    number.
    """
    return (birth ^ birth >> 32) & 0xFFFFFFFF or 1


def stale() -> OSError:
    """ESTALE: the file of a node does not exist any more."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))
