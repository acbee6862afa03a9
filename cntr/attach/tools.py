"""The fat side: the tree that the tools come from."""

from __future__ import annotations

import os
import stat

from cntr.attach.target import Target
from cntr.engines import Container
from cntr.errors import CntrError, TargetNotFound, printable
from cntr.linux import syscalls
from cntr.linux.host import VIEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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


def open_tools(source: str) -> Tools:
    """Open SOURCE: ``host``, ``host:all``, a root directory (a path with a slash), an image, or a TARGET. Raises
    CntrError.
    """
    if source in ("host", HOST_ALL):
        return Tools("host", os.open("/", os.O_PATH | os.O_CLOEXEC), -1, os.environ.get("PATH") or DEFAULT_PATH)
    if "/" in source and ":" not in source.partition("/")[0]:
        return _directory(source)
    if source.partition(":")[0] in ("image", "archive", "oci", "dir"):
        return _image(source)
    from cntr import engines

    try:
        container = engines.resolve(source)
    except TargetNotFound as error:
        if os.path.isdir(source):
            error.hint = f"a directory of that name exists: --tools ./{printable(source)}"
        raise
    if container.rootfs:
        return _directory(container.rootfs)
    engines.verify(container)
    target = Target(container, impatient=True)
    path = target.environment.get("PATH") or DEFAULT_PATH
    tools = Tools(target.label, target.root_fd, target.namespaces.get("mnt", -1), path, target)
    tools.container = container
    return tools


def _image(source: str) -> Tools:
    """Open an image's tree from the cache. Raises CntrError."""
    if source.startswith("image:"):
        with VIEW:
            tools = _unpacked(source)
        tools.mnt_fd = VIEW.mount_namespace()
        return tools
    return _unpacked(source)


def _unpacked(source: str) -> Tools:
    from cntr import images
    from cntr.images import cache

    with images.find(source) as image:
        if image.owner not in (0, os.geteuid()):
            raise CntrError(
                f"--tools {printable(source)}: it is in the store of uid {image.owner}",
                "another user's programs are not run as yours: pull the image yourself",
            )
        if image.engine == "dir":
            return _directory(image.lower_directories()[0])
        held = cache.open_tree(image)
    try:
        tools = _directory(held.path)
    except BaseException:
        held.close()
        raise
    tools.held, tools.label = held.close, printable(source)
    kind = image.engine if image.engine in ("archive", "oci") else "image"
    tools.container = Container(kind, image.reference, 0, image=image.reference, state="image", owner=image.owner)
    settings = image.config.get("Env")
    for setting in settings if isinstance(settings, list) else ():
        if str(setting).startswith("PATH=/"):
            tools.path = str(setting)[5:]
    return tools


def _directory(path: str) -> Tools:
    try:
        root_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CntrError(
            f"--tools {printable(path)}: {error.strerror}",
            "give `host`, a running container, or the directory of a root filesystem",
        ) from None
    tools = Tools(printable(os.path.abspath(path)), root_fd, -1, DEFAULT_PATH)
    from cntr.linux import opened

    tools.container = Container("dir", opened.place_of(root_fd) or "of another mount namespace", 0)
    return tools
