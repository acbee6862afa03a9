"""Mount options: cache policy, timeouts, flags. Both bindings use the same."""

from __future__ import annotations

import errno
import os

from cntr.errors import UsageError

CACHE_POLICIES = ("auto", "strict", "none")


class Options:
    """The options of one CntrFS mount; times in seconds.

    cache: ``strict`` asks the server each time (only data of unchanged files is cached), ``none`` caches nothing,
    ``auto`` caches entries and attributes for the timeouts below, and data across opens.
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
        """The defaults, and what a caller may set directly; ``parse`` sets the rest."""
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
        # Filesystems are mounted on the tree: watch only if entries can be expired rather than dropped, and not for a
        # short session.
        self.keep_mounts = keep_mounts
        self.read_only = read_only
        self.root_kept = False  # the FUSE mount has the nosuid, nodev, noexec flags of the root's mount
        self.own_device = 0  # device of the FUSE mount if it may be mounted inside the served tree, else 0
        self.as_nobody = as_nobody  # read-only, and only the permission bits for others count, for every client
        self.max_fds = max_fds
        self.hang_timeout = 60.0
        self.trace = False
        self.mount_flags = mount_flags or []
        self.fsname = fsname

    def settle(self) -> Options:
        """Adjust dependent values to the cache policy."""
        if self.cache != "auto":
            self.keep_cache = self.writeback = self.invalidate = False
            self.entry_timeout = self.attr_timeout = 0.0
        self.read_only = self.read_only or self.as_nobody
        if "strictatime" in self.mount_flags or "norelatime" in self.mount_flags:
            self.keep_cache = False  # a read from the kernel's cache would not update the access time
        return self

    def demand_writable(self) -> None:
        """Raise EROFS if the tree is served read-only, whatever the mount's flags: a client's root can change those."""
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def leaves_directory_atime(self) -> bool:
        """Whether listing a directory leaves its access time alone, mount(8); the backing filesystem does not know
        these options.
        """
        if self.as_nobody:
            return False  # O_NOATIME needs ownership
        return self.begins_read_only() or "noatime" in self.mount_flags or "nodiratime" in self.mount_flags

    def begins_read_only(self) -> bool:
        """Whether the tree is served read-only, or the mount starts read-only until a remount (mount.fuse.cntrfs)."""
        words = [word for word in self.mount_flags if word in ("ro", "rw")]
        return self.read_only or words[-1:] == ["ro"]


def connection_options(fuse_fd: int) -> dict[str, str | None]:
    """The mount options of a connection: the kernel checks permissions itself, and every user has access."""
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
#: Mount flags passed to mount(2) and handled by the kernel.
MOUNT_FLAGS = (
    "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "norelatime", "strictatime", "sync", "dirsync",
    "suid", "dev", "exec", "atime", "diratime", "async", "lazytime", "nolazytime", "nosymfollow",
    "allow_suid", "allow_dev",
)  # fmt: skip
#: Options used by mount(8) or fstab, or by habit; always in effect, or meant for another program.
IGNORED = ("allow_other", "default_permissions", "defaults", "auto", "noauto", "user", "users", "nouser", "_netdev",
           "nofail", "nonempty", "acl", "noacl", "user_xattr")  # fmt: skip


def parse(text: str, options: Options | None = None) -> Options:
    """Parse a comma-separated ``-o`` string into OPTIONS. Raises UsageError naming the unknown word."""
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
    if not 0 <= number <= _LARGEST:  # false for nan too
        what = "how many" if key == "max_fds" else "a number of seconds"
        raise UsageError(f"mount option {key} wants {what}, not {value!r}", f"for example {key}=60")
    return number
