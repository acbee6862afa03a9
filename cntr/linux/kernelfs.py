"""File systems that show the kernel's state and hold no files."""

from __future__ import annotations

from cntr.linux import syscalls

# linux/magic.h
MAGICS = frozenset(
    (
        *(syscalls.PROC_SUPER_MAGIC, syscalls.SYSFS_MAGIC, syscalls.DEVPTS_SUPER_MAGIC, syscalls.CGROUP2_SUPER_MAGIC),
        *(0x27E0EB, 0x19800202, 0x64626720, 0x74726163, 0x73636673),  # cgroup, mqueue, debugfs, tracefs, securityfs
        *(0xCAFE4A11, 0x6165676C, 0x62656570, 0x65735543, 0x42494E4D),  # bpf, pstore, configfs, fusectl, binfmt_misc
        *(0xF97CFF8C, 0x6E736673, 0x09041934, 0x50494446),  # selinuxfs, nsfs, anon_inode (fanotify, …), pidfs
    )
)


def holds(fd: int) -> bool:
    """Whether fd is on such a file system. Raises OSError."""
    return syscalls.filesystem_magic(fd) in MAGICS
