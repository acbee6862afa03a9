"""The lock on a container's own layer: only one session at a time writes to it.

The kernel would let two overlays write to one directory, which damages it (overlayfs.rst). The lock
is flock(2) on that directory, for root and for its user alike. For a user's container, the user
chooses the path. So root has it opened by a process with the rights of the container's root,
believes it only if the directory is the user's, and waits no longer than SECONDS.
"""

from __future__ import annotations

import fcntl
import os

from cntr.errors import CntrError
from cntr.images.ids import enter_user_namespace
from cntr.linux import sockets, syscalls
from cntr.linux.host import VIEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.images.blueprint import Blueprint

SECONDS = 5.0


def lock(made: Blueprint) -> int:
    """An fd of the layer; the lock is held until its last copy is closed. Raises CntrError."""
    what = f"{made.label()}: its layer"
    try:
        if made.owner == os.geteuid():
            try:
                with VIEW:
                    return _locked(made.upper)
            except PermissionError:  # only its container's root may search it
                if not made.uid_map:
                    raise
        fd = sockets.fd_from_child(lambda: _as_its_root(made), "open", SECONDS)
    except BlockingIOError:
        raise CntrError(
            f"{made.label()}: another session writes to its layer",
            "end that one first; without --write changes are thrown away",
        ) from None
    except OSError as error:
        raise CntrError(f"{what}: {error.strerror}", "without --write changes are thrown away") from None
    owner = os.fstat(fd).st_uid
    if any(outside <= owner < outside + count for _, outside, count in made.uid_map):
        return fd
    os.close(fd)
    raise CntrError(
        f"{what} is uid {owner}'s, and the container's owner is uid {made.owner}", "without --write it is only read"
    )


def _as_its_root(made: Blueprint) -> int:
    """In a child: enter the namespaces of its builder first."""
    VIEW.enter_mounts()
    enter_user_namespace(made.uid_map, made.gid_map)  # newuidmap(1) requires a process of the same user
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    return _locked(made.upper)


def _locked(path: str) -> int:
    fd = syscalls.openat2(
        syscalls.AT_FDCWD, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, syscalls.RESOLVE_NO_MAGICLINKS
    )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd
