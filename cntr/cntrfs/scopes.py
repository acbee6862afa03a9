"""What a thread becomes for a few system calls, and is no more after them. Not reentrant; do not await inside."""

from __future__ import annotations

import os

from cntr.linux import credentials
from cntr.linux.credentials import become

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_SOMEBODY = 65534  # not root: ext4 can reserve blocks for a uid too (resuid=0)


class Raised:
    """A scope with the same ids and other capabilities."""

    def __init__(self, own: bytes, other: bytes) -> None:
        self._own, self._other = own, other

    def __enter__(self) -> None:
        credentials.capset(self._other)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        credentials.capset(self._own)


class PlainUser:
    """The scope of ``registering`` for a frugal server. The kernel drops and raises root's capabilities over files itself."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def __enter__(self) -> None:
        credentials.setfsuid(_SOMEBODY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        credentials.setfsuid(self._uid)


class Ordinary:
    """The scope of ``ordinary``: another id and fewer capabilities. Permissions were checked when the fd was opened."""

    def __init__(self, own: bytes, lowered: bytes) -> None:
        self._own, self._lowered = own, lowered
        self._uid, self._gid = os.geteuid(), os.getegid()
        # Group 0 has no reserved blocks (in ext4 resgid=0 means "none"). A change of credentials takes 2 us.
        self._changes_group = self._gid != 0

    def __enter__(self) -> None:
        if self._changes_group:
            credentials.setfsgid(_SOMEBODY)
        become(_SOMEBODY, self._lowered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        become(self._uid, self._own)
        if self._changes_group:
            credentials.setfsgid(self._gid)
