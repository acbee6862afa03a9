"""Mount options: cache policy, timeouts, flags. The same for both bindings."""

from __future__ import annotations

import errno
import os

from cntr.errors import UsageError

CACHE_POLICIES = ("auto", "strict", "none")


class Options:
    """The options of one CntrFS mount; times in seconds.

    cache: ``strict`` asks the server each time (only data stays cached while a file is unchanged), ``none`` caches
    nothing, ``auto`` keeps entries and attributes for the timeouts below and data across opens.
    """

    def __init__(
        self,
        *,
        fsname: str = "",
        read_only: bool = False,
        invalidate: bool = True,
        keep_mounts: bool = False,
        as_nobody: bool = False,
        max_fds: int | None = None,
        mount_flags: list[str] | None = None,
    ) -> None:
        """The defaults, and what a caller may say at once; ``parse`` sets the rest."""
        self.cache = "auto"
        self.entry_timeout = 1.0
        self.attr_timeout = 1.0
        self.timeouts_given = False
        self.keep_cache = True
        self.writeback = False
        self.readdirplus = True
        self.passthrough = True
        self.io_uring = False
        self.invalidate = invalidate  # watch the backing filesystems and tell the kernel what changed behind the mount
        # Things are mounted on the tree: watch only where an entry can be expired, not dropped; and not for a command of a moment.
        self.keep_mounts = keep_mounts
        self.read_only = read_only
        self.root_kept = False  # the FUSE mount has nosuid, nodev, noexec where the mount of the tree's root has them
        self.own_device = (
            0  # of the FUSE mount, where it may come to be mounted in the tree that it serves; 0: it can't
        )
        self.as_nobody = as_nobody  # read-only, and for every client only the permission bits for others count: nobody
        self.max_fds = max_fds
        self.hang_timeout = 60.0
        self.trace = False
        self.mount_flags = mount_flags or []
        self.fsname = fsname

    def settle(self) -> Options:
        """Make the dependent values agree with the cache policy."""
        if self.cache != "auto":
            self.keep_cache = self.writeback = self.invalidate = False
            self.entry_timeout = self.attr_timeout = 0.0
        self.read_only = self.read_only or self.as_nobody
        if "strictatime" in self.mount_flags or "norelatime" in self.mount_flags:
            self.keep_cache = False  # what is read from the kernel's cache moves no access time
        return self

    def demand_writable(self) -> None:
        """EROFS where the tree is served read-only, whatever the mount's flags are: a client's root can change those."""
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def leaves_directory_atime(self) -> bool:
        """Whether listing a directory leaves its access time alone, mount(8): the backing filesystem does not know of these."""
        if self.as_nobody:
            return False  # O_NOATIME is for owners
        return self.begins_read_only() or "noatime" in self.mount_flags or "nodiratime" in self.mount_flags

    def begins_read_only(self) -> bool:
        """Whether the tree is served read-only, or the mount is so until somebody remounts it (mount.fuse.cntrfs)."""
        words = [word for word in self.mount_flags if word in ("ro", "rw")]
        return self.read_only or words[-1:] == ["ro"]


def connection_options(fuse_fd: int) -> dict[str, str | None]:
    """What the kernel is told of a connection when it is mounted: it checks permissions itself, for every user."""
    return {
        "fd": str(fuse_fd),
        "rootmode": "40000",
        "user_id": "0",
        "group_id": "0",
        "default_permissions": None,
        "allow_other": None,
    }


_FLAGS = {
    "keep_cache": ("keep_cache", True),
    "no_keep_cache": ("keep_cache", False),
    "writeback": ("writeback", True),
    "writeback_cache": ("writeback", True),
    "no_writeback": ("writeback", False),
    "readdirplus": ("readdirplus", True),
    "no_readdirplus": ("readdirplus", False),
    "passthrough": ("passthrough", True),
    "no_passthrough": ("passthrough", False),
    "io_uring": ("io_uring", True),
    "no_io_uring": ("io_uring", False),
    "invalidate": ("invalidate", True),
    "no_invalidate": ("invalidate", False),
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "as_nobody": ("as_nobody", True),
    "trace": ("trace", True),
}
_NUMBERS = {"entry_timeout": "entry_timeout", "attr_timeout": "attr_timeout", "hang_timeout": "hang_timeout"}
#: Mount flags that mount(2) takes; everything else about them is the kernel's business.
MOUNT_FLAGS = (
    "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "norelatime", "strictatime", "sync", "dirsync",
    "suid", "dev", "exec", "atime", "diratime", "async", "lazytime", "nolazytime", "nosymfollow",
    "allow_suid", "allow_dev",
)  # fmt: skip
#: Said by mount(8), fstab or habit; always so here, or meant for someone else.
IGNORED = ("allow_other", "default_permissions", "defaults", "auto", "noauto", "user", "users", "nouser", "_netdev",
           "nofail", "nonempty", "acl", "noacl", "user_xattr")  # fmt: skip


def parse(text: str, options: Options | None = None) -> Options:
    """Read a comma-separated ``-o`` string into OPTIONS; UsageError names the word that is not understood."""
    options = options or Options()
    for word in filter(None, text.split(",")):
        key, _, value = word.partition("=")
        if word in _FLAGS:
            name, flag = _FLAGS[word]
            setattr(options, name, flag)
        elif word in MOUNT_FLAGS:
            options.mount_flags.append(word)
        elif key in _NUMBERS:
            setattr(options, _NUMBERS[key], _number(key, value))
            options.timeouts_given = options.timeouts_given or key != "hang_timeout"
        elif key == "max_fds":
            options.max_fds = int(_number(key, value))
        elif key == "cache":
            set_cache(options, value)
        elif key == "fsname":
            options.fsname = value
        elif key not in IGNORED and not key.startswith(("x-", "comment")):
            raise UsageError(f"unknown mount option: {word}", f"known: {', '.join((*_FLAGS, *_NUMBERS, 'cache=…'))}")
    return options


def set_cache(options: Options, policy: str) -> None:
    """--cache POLICY."""
    if policy not in CACHE_POLICIES:
        raise UsageError(f"unknown cache policy: {policy}", f"one of: {', '.join(CACHE_POLICIES)}")
    options.cache = policy


_LARGEST = 1e9


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _LARGEST:  # nan is not either
        what = "how many" if key == "max_fds" else "a number of seconds"
        raise UsageError(f"mount option {key} wants {what}, not {value!r}", f"for example {key}=60")
    return number
