"""CntrFS with one deliberate fault, served like the real one: python -m tests.fs.broken FAULT
SOURCE MOUNTPOINT …

Each fault is a mistake that loopback filesystems have really made. The suite must catch all of
them: see test_mutations.py.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from typing import Any

from cntr.cntrfs.__main__ import main as serve
from cntr.cntrfs.backing import SERVER, Credentials
from cntr.cntrfs.core import Core
from cntr.cntrfs.fds import BoundedFds
from cntr.cntrfs.files import OpenFiles
from cntr.cntrfs.nodes import NodeTable
from cntr.cntrfs.options import Options
from cntr.cntrfs.xattrs import Xattrs
from cntr.linux import credentials, file_syscalls

Fault = Callable[[], None]


class Mutation:
    """A fault, and the checks of which at least one must fail because of it."""

    def __init__(self, inject: Fault, *caught_by: str, options: tuple[str, ...] = ()) -> None:
        self.inject, self.caught_by, self.options = inject, caught_by, options


def _wrap(owner: type, name: str, replacement: Callable[..., Any]) -> None:
    """Make OWNER.NAME call replacement(original, self, …)."""
    original = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **kwargs: replacement(original, self, *args, **kwargs))


def _create_ignores_mode() -> None:
    def create(original: Any, self: Core, parent: int, name: bytes, flags: int, mode: int, caller: Any) -> Any:
        return original(self, parent, name, flags, 0o755, caller)

    _wrap(Core, "create", create)


def _caller_is_ignored() -> None:
    def as_caller(original: Any, self: Credentials, caller: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, SERVER, *args, **kwargs)

    _wrap(Credentials, "as_caller", as_caller)


def _supplementary_groups_are_ignored() -> None:
    credentials.setgroups = lambda groups: None


def _nodes_are_paths() -> None:
    """A node's identity is the path by which it was first seen."""
    paths: dict[int, tuple[bytes, int]] = {}

    def see(original: Any, self: NodeTable, attributes: Any, parent: Any, parent_fd: int, name: bytes) -> Any:
        node = original(self, attributes, parent, parent_fd, name)
        if name not in (b".", b"..", b""):
            paths[node.nodeid] = (os.readlink(b"/proc/self/fd/%d" % parent_fd) + b"/" + name, attributes.ino)
        return node

    def fd(original: Any, self: BoundedFds, node: Any) -> Any:
        if node.nodeid in paths:
            path, inode = paths[node.nodeid]
            if os.lstat(path).st_ino != inode:
                raise FileNotFoundError(2, "another file has that path now")
        return original(self, node)

    _wrap(NodeTable, "see", see)
    _wrap(BoundedFds, "fd", fd)


def _unlinked_files_are_lost() -> None:
    _wrap(Core, "_keep_reachable", lambda original, self, *args: None)

    def unlink(original: Any, self: Core, parent: int, name: bytes) -> None:
        directory = self.nodes.get(parent)
        node = self.nodes.find(file_syscalls.statx(self.fds.fd(directory), name), directory, name)
        original(self, parent, name)
        if node is not None:
            self.fds.close(node)
            node.handle = node.parent = None  # no other way back to it

    _wrap(Core, "unlink", unlink)


def _setgid_directories_are_not_inherited() -> None:
    def undo(core: Core, parent: int, name: bytes, caller: Any) -> None:
        parent_fd = core.fds.fd(core.nodes.get(parent))
        os.chown(name, -1, caller.gid, dir_fd=parent_fd, follow_symlinks=False)
        found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode) & ~stat.S_ISGID, dir_fd=parent_fd)

    def mkdir(original: Any, self: Core, parent: int, name: bytes, mode: int, caller: Any) -> Any:
        node, _ = original(self, parent, name, mode, caller)
        undo(self, parent, name, caller)
        return node, file_syscalls.statx(self.fds.fd(node))

    def create(original: Any, self: Core, parent: int, name: bytes, flags: int, mode: int, caller: Any) -> Any:
        node, _, fh = original(self, parent, name, flags, mode, caller)
        undo(self, parent, name, caller)
        return node, file_syscalls.statx(self.files.handles[fh].fd), fh

    _wrap(Core, "mkdir", mkdir)
    _wrap(Core, "create", create)


def _suid_survives_writing() -> None:
    _wrap(Credentials, "without_fsetid", lambda original, self: Credentials.as_caller(self, SERVER))

    def setattr_(original: Any, self: Core, nodeid: int, changes: Any, fh: Any = None) -> Any:
        if changes.mode is not None and changes.uid is None and changes.gid is None:
            current = stat.S_IMODE(os.stat(b"/proc/self/fd/%d" % self.fds.fd(self.nodes.get(nodeid))).st_mode)
            set_ids = stat.S_ISUID | stat.S_ISGID
            if current & set_ids and changes.mode & 0o7777 == current & ~set_ids:
                changes.mode = None
        changes.killpriv = None
        return original(self, nodeid, changes, fh)

    original = OpenFiles.write_at

    def restoring(fd: int, *args: Any) -> Any:
        before = stat.S_IMODE(os.fstat(fd).st_mode)
        result = original(fd, *args)
        if stat.S_IMODE(os.fstat(fd).st_mode) != before:
            os.chmod(b"/proc/self/fd/%d" % fd, before)
        return result

    _wrap(Core, "setattr", setattr_)
    OpenFiles.write_at = staticmethod(restoring)


def _umask_is_applied_by_the_server_too() -> None:
    _wrap(Core, "__init__", lambda original, self, *args: (original(self, *args), os.umask(0o022))[0])


def _rename_flags_are_ignored() -> None:
    def rename(
        original: Any, self: Core, old: int, name: bytes, new: int, new_name: bytes, flags: int, caller: Any
    ) -> Any:
        return original(self, old, name, new, new_name, 0, caller)

    _wrap(Core, "rename", rename)


def _append_is_a_plain_write() -> None:
    original = OpenFiles.write_at
    OpenFiles.write_at = staticmethod(
        lambda fd, offset, data, append: original(fd, 0 if append else offset, data, False)
    )


def _times_are_whole_microseconds() -> None:
    original = file_syscalls.utimens

    def utimens(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        rounded = [(s, ns if ns > 999_999_999 else ns // 1000 * 1000) for s, ns in (atime, mtime)]
        original(path, rounded[0], rounded[1])

    file_syscalls.utimens = utimens


def _hard_links_are_copies() -> None:
    def link(original: Any, self: Core, nodeid: int, parent: int, name: bytes) -> Any:
        parent_fd = self.fds.fd(self.nodes.get(parent))
        with open(b"/proc/self/fd/%d" % self.fds.fd(self.nodes.get(nodeid)), "rb") as source:
            data = source.read()
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=parent_fd)
        os.write(fd, data)
        os.close(fd)
        return self._made(self.nodes.get(parent), parent_fd, name)

    _wrap(Core, "link", link)


def _listing_has_no_dots() -> None:
    def entries(original: Any, self: Core, directory: Any, offset: int) -> Any:
        return (entry for entry in original(self, directory, offset) if entry.name not in (b".", b".."))

    _wrap(Core, "entries", entries)


def _listing_loses_an_entry_per_buffer() -> None:
    def entries(original: Any, self: Core, directory: Any, offset: int) -> Any:
        found = original(self, directory, offset)
        if offset:
            next(found, None)
        return found

    _wrap(Core, "entries", entries)


def _direct_io_reaches_the_backing_file() -> None:
    _wrap(OpenFiles, "backing_flags", lambda original, self, flags: original(self, flags) | flags & os.O_DIRECT)


def _link_count_is_one() -> None:
    original = file_syscalls.statx
    file_syscalls.statx = lambda *args: original(*args)._replace(nlink=1)


def _attributes_are_cached_for_an_hour() -> None:
    """… and no invalidations are sent for changes behind the mount."""
    _wrap(Options, "settle", _an_hour)


def _an_hour(original: Any, self: Options) -> Options:
    settled: Options = original(self)
    settled.entry_timeout = settled.attr_timeout = 3600.0
    settled.invalidate = False
    return settled


def _an_operation_raises() -> None:
    def readlink(original: Any, self: Core, nodeid: int) -> bytes:
        raise TypeError("a mistake")

    _wrap(Core, "readlink", readlink)


def _all_xattrs_are_lost() -> None:
    _wrap(Xattrs, "set", lambda original, self, *args, **kwargs: None)


def _truncation_is_ignored() -> None:
    _wrap(Core, "_truncate", lambda original, self, *args: None)


MUTATIONS: dict[str, Mutation] = {
    # at least the six that the compliance suite requires
    "create-ignores-mode": Mutation(_create_ignores_mode, "creation.mode_of_file_is_exact", "creation.private_file_stays_private"),
    "caller-is-ignored": Mutation(_caller_is_ignored, "creation.owner_is_the_caller", "creation.owner_in_user_namespace"),
    "nodes-are-paths": Mutation(_nodes_are_paths, "renames.parent_moves_with_its_children", "names.working_directory_renamed"),
    "unlinked-files-are-lost": Mutation(
        _unlinked_files_are_lost,
        "openfiles.unlinked_file_takes_every_fd_call",
        "openfiles.unlinked_file_opened_read_only_is_changed_through_fd",
    ),
    "setgid-not-inherited": Mutation(_setgid_directories_are_not_inherited, "creation.setgid_directory_is_inherited"),
    "suid-survives-writing": Mutation(
        _suid_survives_writing, "attributes.write_by_another_clears_suid", "attributes.truncate_by_another_clears_suid"
    ),
    # and more
    "groups-are-ignored": Mutation(_supplementary_groups_are_ignored, "creation.setgid_file_needs_membership"),
    "umask-twice": Mutation(_umask_is_applied_by_the_server_too, "creation.mode_of_file_is_exact"),
    "rename-flags-ignored": Mutation(_rename_flags_are_ignored, "renames.exchange"),
    "append-overwrites": Mutation(_append_is_a_plain_write, "openfiles.append_appends", options=("-o", "no_passthrough")),
    "times-in-microseconds": Mutation(_times_are_whole_microseconds, "attributes.times_to_the_nanosecond"),
    "hard-links-are-copies": Mutation(_hard_links_are_copies, "links.hard_link_is_the_same_file"),
    "no-dots-in-listing": Mutation(_listing_has_no_dots, "names.dot_and_dotdot"),
    "listing-loses-entries": Mutation(_listing_loses_an_entry_per_buffer, "names.five_thousand_entries"),
    "direct-io-passes": Mutation(
        _direct_io_reaches_the_backing_file, "data.direct_and_buffered_and_mapped_agree", "data.direct_io",
        options=("-o", "no_passthrough"),
    ),
    "link-count-is-one": Mutation(_link_count_is_one, "links.link_count_everywhere_at_once"),
    "stale-for-an-hour": Mutation(
        _attributes_are_cached_for_an_hour, "behind.removed_file_is_gone", "behind.changed_attributes_are_seen"
    ),
    "an-operation-raises": Mutation(_an_operation_raises, "links.symlink_text_is_kept"),
    "xattrs-are-lost": Mutation(_all_xattrs_are_lost, "xattrs.set_get_list_remove"),
    "truncation-is-ignored": Mutation(_truncation_is_ignored, "data.truncate_down_and_up_clears"),
}  # fmt: skip

if __name__ == "__main__":
    MUTATIONS[sys.argv[1]].inject()
    sys.exit(serve(sys.argv[2:]))
