"""Mount options, mount(8), as bits of mount(2) and mount_setattr(2)."""

from __future__ import annotations

from cntr.linux import syscalls

_FLAG_BITS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "nosymfollow": 256, "noatime": 1024,
    "nodiratime": 2048, "relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25,
}  # fmt: skip
_FLAG_OPPOSITES = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "atime": "noatime",
    "diratime": "nodiratime", "norelatime": "relatime", "nolazytime": "lazytime",
    "allow_suid": "nosuid", "allow_dev": "nodev",  # mount(8) does not pass on suid and dev, its defaults
}  # fmt: skip

ATIME_WORDS = {
    "noatime": syscalls.MOUNT_ATTR_NOATIME, "strictatime": syscalls.MOUNT_ATTR_STRICTATIME, "relatime": 0, "atime": 0,
    "norelatime": syscalls.MOUNT_ATTR_STRICTATIME, "nodiratime": 0, "diratime": 0,
}  # fmt: skip


def mount_flags(words: list[str]) -> int:
    """The MS_* bits of mount options; of contradicting options the last wins."""
    flags = 0
    for word in words:
        if word in _FLAG_OPPOSITES:
            flags &= ~_FLAG_BITS[_FLAG_OPPOSITES[word]]
        else:
            flags |= _FLAG_BITS[word]
    return flags
