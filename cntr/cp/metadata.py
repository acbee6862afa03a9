"""File metadata that a copy keeps: owner, mode, times, extended attributes."""

from __future__ import annotations

import errno
import os
import stat

from cntr.cp import owners, stream
from cntr.cp.send import ARCHIVE_ATTRIBUTES, PLAIN_ATTRIBUTES
from cntr.cp.stream import Meta, Tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NO_SET_ID = "set-id bits not kept: whoever fills the container would give rights on the host"
NO_CAPABILITIES = "file capabilities not kept: whoever fills the container would give rights on the host"


class Metadata:
    """Applies metadata to what was received.

    path: converts a name for messages; owner: converts the other side's ids to this side's; privileged: whether files
    keep set-id bits and file capabilities.
    """

    def __init__(self, tell: Tell, path: Callable[[bytes], bytes], *, archive: bool) -> None:
        """archive: keep owner, set-id bits and the attributes that depend on the owner."""
        self.tell, self.path, self.archive = tell, path, archive
        self.owner: Callable[[int, int], tuple[int, int]] = stream.same
        self.privileged = True

    def give(self, fd: int, meta: Meta, name: bytes) -> None:
        """Set everything. The owner comes first: chown(2) clears set-id bits and file capabilities."""
        self.own(meta, name, lambda *ids: os.fchown(fd, *ids))

    def own(self, meta: Meta, name: bytes, chown: Callable[..., None]) -> None:
        """Set owner and group; an id that does not exist on this side stays the copier's."""
        if not self.archive:
            return
        ids = self.owner(meta.uid, meta.gid)
        if stream.KEEP in ids:
            self.tell.note("owner not kept: it has none that this side knows", self.path(name))
        try:
            chown(*(-1 if number == stream.KEEP else number for number in ids))
        except OSError as error:
            self._not_kept("owner", error, name)

    def attribute(self, fd: int, key: bytes, value: bytes, name: bytes) -> None:
        """Set one extended attribute; ``user.`` needs no rights, the others need --archive."""
        if not os.fsdecode(key).startswith(ARCHIVE_ATTRIBUTES if self.archive else PLAIN_ATTRIBUTES):
            return
        translated = owners.attribute(key, value, self.owner)
        if translated is None:
            self.tell.note(owners.NO_ACL, self.path(name))
            return
        if key == b"security.capability" and not self.privileged:
            self.tell.note(NO_CAPABILITIES, self.path(name))
            return
        try:
            os.setxattr(fd, key, translated)
        except OSError as error:
            self._not_kept("extended attribute", error, name)

    def settle(self, fd: int, meta: Meta, name: bytes) -> None:
        """Set mode and times, as the last step. Without --archive the owner is another one, so set-id bits are dropped."""
        mode = meta.mode & (0o7777 if self.archive else 0o1777)
        if not self.privileged and mode & 0o6000 and not stat.S_ISDIR(meta.mode):
            mode &= 0o1777
            self.tell.note(NO_SET_ID, self.path(name))
        try:
            if not self.archive and stat.S_ISDIR(meta.mode):
                mode |= os.fstat(fd).st_mode & stat.S_ISGID  # inherited from the parent directory
            os.fchmod(fd, mode)
        except OSError as error:
            self._not_kept("mode", error, name)
        try:
            os.utime(fd, ns=(meta.atime, meta.mtime))
        except (OSError, OverflowError) as error:
            self._not_kept("time", error if isinstance(error, OSError) else OSError(errno.ERANGE, ""), name)

    def _not_kept(self, what: str, error: OSError, name: bytes) -> None:
        self.tell.note(f"{what} not kept: {os.strerror(error.errno or 0)}", self.path(name))
