"""Checks that a binding is known to fail, with the reason. A check listed here that passes fails
the suite.

Keys are (binding, check); the binding "*" stands for both, "writeback" for both in that mode.
"""

from __future__ import annotations

import platform

_NO_TMPFILE = "pyfuse3 has no TMPFILE request"
_NO_FALLOCATE = "pyfuse3 has no FALLOCATE request"
_NO_IOCTL = "pyfuse3 has no IOCTL request: inode flags cannot be asked for"
_NO_LOCKS = "pyfuse3 has no lock requests: locks are the kernel's own, seen by this mount only"
_KERNELS_TIMES = "with the writeback cache the kernel believes its own size, mtime and ctime, and never the server's"
_OWN_INODE = "the kernel keys sockets and watches by its own inode, which is not the backing one"

EXPECTED: dict[tuple[str, str], str] = {
    (
        "*",
        "privileges.writing_takes_what_it_takes",
    ): "before root writes a file with capabilities the kernel asks for what it asks for a chown(-1, -1): set-id bits go too",
    ("pyfuse3", "attributes.statx_birth_time"): "pyfuse3 has no STATX request",
    ("pyfuse3", "creation.tmpfile"): _NO_TMPFILE,
    ("pyfuse3", "creation.tmpfile_exclusive_cannot_be_linked"): _NO_TMPFILE,
    ("pyfuse3", "creation.tmpfile_owner_and_group"): _NO_TMPFILE,
    (
        "pyfuse3",
        "creation.default_acl_replaces_umask",
    ): "pyfuse3 does not negotiate DONT_MASK: the kernel has applied the umask",
    ("pyfuse3", "locks.flock_excludes_the_backing_tree"): _NO_LOCKS,
    ("pyfuse3", "locks.posix_lock_excludes_the_backing_tree"): _NO_LOCKS,
    ("pyfuse3", "lock_turns.waiting_for_a_lock_of_the_backing_tree"): _NO_LOCKS,
    ("pyfuse3", "space.fallocate_grows"): _NO_FALLOCATE,
    ("pyfuse3", "space.fallocate_keeps_size"): _NO_FALLOCATE,
    ("pyfuse3", "space.punch_hole"): _NO_FALLOCATE,
    ("pyfuse3", "space.zero_range"): _NO_FALLOCATE,
    ("pyfuse3", "space.fallocate_errors"): _NO_FALLOCATE,
    ("pyfuse3", "space.fallocate_by_another_clears_suid"): _NO_FALLOCATE,
    ("pyfuse3", "space.inode_flags"): _NO_IOCTL,
    ("pyfuse3", "space.immutable_and_append_only"): _NO_IOCTL,
    ("pyfuse3", "space.flags_need_privilege"): _NO_IOCTL,
    ("pyfuse3", "space.extended_flags"): _NO_IOCTL,
    ("pyfuse3", "space.seek_data_and_hole"): "pyfuse3 has no LSEEK request: the whole file counts as data",
    (
        "*",
        "space.collapse_and_insert_range",
    ): "the kernel refuses these two modes for every FUSE filesystem (fuse_file_fallocate)",
    ("*", "space.statx_attributes_show_flags"): "of a FUSE server's STATX answer the kernel takes the birth time only",
    (
        "*",
        "data.epoll_refuses_regular_files",
    ): "every FUSE file has a poll operation, so epoll takes it; poll(2) says ready",
    ("writeback", "attributes.what_moves_which_time"): f"{_KERNELS_TIMES}: ftruncate(2) to the same size moves none",
    ("writeback", "behind.changed_content_is_read"): _KERNELS_TIMES,
    ("writeback", "behind.open_file_sees_what_is_written_behind"): _KERNELS_TIMES,
    ("writeback", "behind.changed_attributes_are_seen"): _KERNELS_TIMES,
    ("writeback", "behind.storm_of_changes"): _KERNELS_TIMES,
    ("writeback", "behind.written_through_a_mapping_is_seen"): _KERNELS_TIMES,
    (
        "writeback",
        "data.bad_offsets",
    ): "the kernel takes a write at any offset; that the backing file has no such place is said by close(2)",
    (
        "writeback",
        "space.punch_hole",
    ): "st_blocks counts what was written back: nothing yet when the check first looks",
    (
        "writeback",
        "space.seek_data_and_hole",
    ): "the kernel asks for holes before it has written back, so that the whole file counts as data",
    ("*", "special.unix_socket_from_the_backing_tree"): _OWN_INODE,
    ("*", "special.inotify_of_backing_changes"): _OWN_INODE,
}


_TMPFILE = ((6, 1), "TMPFILE request of FUSE")
#: check: (kernel that first passes it on devfuse, what it has since then)
SINCE = {
    "attributes.statx_birth_time": ((6, 6), "STATX request of FUSE"),
    "creation.tmpfile": _TMPFILE,
    "creation.tmpfile_exclusive_cannot_be_linked": _TMPFILE,
    "creation.tmpfile_owner_and_group": _TMPFILE,
    "space.zero_range": ((5, 14), "FALLOC_FL_ZERO_RANGE on FUSE (older kernels refuse it without asking the server)"),
}


def reason(binding: str, check: str) -> str:
    """Why CHECK is expected to fail with BINDING; empty if it must pass."""
    binding, _, mode = binding.partition("-")
    kernel, what = SINCE.get(check, ((0, 0), ""))
    if binding == "devfuse" and tuple(map(int, platform.release().split(".")[:2])) < kernel:
        return f"before Linux {kernel[0]}.{kernel[1]} there is no {what}"
    keys = ((binding, check), (mode, check), ("*" if binding != "plain" else "", check))
    return next((EXPECTED[key] for key in keys if key in EXPECTED), "")
