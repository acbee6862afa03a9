"""The fat side: the tree that the tools come from."""

from __future__ import annotations

import os
import stat

from cntr.attach.target import Target
from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.engines import Container

HOST_ALL = "host:all"  # the whole host, as it is
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Tools:
    """The tools' tree: a root in a mount namespace.

    mnt_fd: that mount namespace, -1 for the caller's; root_fd: the tree's root (O_PATH); path: the PATH for its
    commands; target: the container it belongs to, None for the host or a directory; container: what a policy is asked
    about, None for the host.
    """

    __slots__ = ("container", "held", "label", "mnt_fd", "path", "root_fd", "target")

    def __init__(self, label: str, root_fd: int, mnt_fd: int, path: str, target: Target | None = None) -> None:
        self.label, self.root_fd, self.mnt_fd, self.path, self.target = label, root_fd, mnt_fd, path, target
        self.container: Container | None = None
        self.held: Callable[[], None] | None = None  # releases an image's tree in the cache

    def read_file(self, path: str, limit: int = 1 << 20) -> str:
        """The first LIMIT bytes of a regular file of the tools' tree, "" if it cannot be read."""
        if self.target:
            return self.target.read_file(path, limit)
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        try:
            fd = syscalls.openat2(self.root_fd, path.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
        except OSError:
            return ""
        try:
            return os.fsdecode(os.pread(fd, limit, 0)) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
        except OSError:
            return ""
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close what was opened for it."""
        if self.root_fd >= 0 and self.target is None:
            os.close(self.root_fd)
        if self.target is not None:
            self.target.close()
        self.root_fd = -1
        if self.held:
            self.held()
            if self.mnt_fd >= 0:
                os.close(self.mnt_fd)


def of_host() -> Tools:
    """The tools of this machine."""
    return Tools("host", os.open("/", os.O_PATH | os.O_CLOEXEC), -1, os.environ.get("PATH") or DEFAULT_PATH)
