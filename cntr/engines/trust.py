"""Which user besides root can have written a path, and whose claims count for the caller.

The rule for every engine module: a name leads to a process by root's own sources (files, sockets and directories that
only root can change, including all parents), or by a user's sources for that user's own processes only.
"""

from __future__ import annotations

import os

from cntr.linux import procfs

ANYBODY = -1  # several users, or all, can have written it: it does not count
LINKS = 40  # symbolic links followed in one path, as many as the kernel does (path_resolution(7))
S_IFMT, S_IFDIR, S_IFLNK, S_IFREG, S_IFSOCK = 0o170000, 0o040000, 0o120000, 0o100000, 0o140000

SOME = 20_000  # directory entries examined where any user can create them

_owners: dict[str, int] = {}  # of the paths of this lookup
_speaker = -1  # the uid this process speaks for: see ``speak_for``


def forget() -> None:
    """Start a new lookup."""
    _owners.clear()


def speak_for(uid: int) -> None:
    """From now on only UID's sources count: this process reports what that user's engines know."""
    global _speaker
    _speaker = uid
    forget()


def accepts(owner: int) -> bool:
    """Whether sources of OWNER (result of ``owner``) count here. For root only root's own, as users are asked
    separately; for a user also the user's own.
    """
    if _speaker >= 0:
        return owner == _speaker
    me = os.geteuid()
    return owner in (0, me)


def owner(path: str) -> int:
    """The uid of the one user besides root who can change what is at PATH: 0 for root only, ANYBODY for several. Raises
    OSError.

    All directories on the way count, including those that symbolic links lead through.
    """
    if path in _owners:
        return _owners[path]
    info = os.lstat(path)
    parent = path.rpartition("/")[0]
    if info.st_mode & S_IFMT == S_IFLNK or not parent or "." in parent.split("/") or ".." in path.split("/"):
        found = _walk(path)
    else:  # the answer for a directory is used for its entries
        found = merge(owner(parent), changer(info, path))
    _owners[path] = found
    return found


def owner_or_anybody(path: str) -> int:
    """The same; ANYBODY if PATH is missing or cannot be examined."""
    try:
        return owner(path)
    except OSError:
        return ANYBODY


def some_names(path: str, beginning: str) -> list[str]:
    """The names with that prefix among the first SOME entries of a directory where any user can create files."""
    found = []
    try:
        with os.scandir(path) as entries:
            for count, entry in enumerate(entries):
                if count >= SOME:
                    break
                if entry.name.startswith(beginning):
                    found.append(entry.name)
    except OSError:
        pass
    return found


def answers(path: str, mounts: list[procfs.Mount]) -> bool:
    """Whether access to PATH cannot block: no mount point, or a tmpfs as logind makes it."""
    types = [mount.fstype for mount in mounts if mount.mount_point == path]
    return not types or types[-1] == "tmpfs"


def merge(above: int, here: int) -> int:
    """Who controls a path: the user who controls the directory (ABOVE), whatever its owner (HERE), e.g. a subordinate id."""
    return above or here


def _walk(path: str) -> int:
    found, at, links = changer(os.lstat("/"), "/"), "", 0
    pending = (path if path.startswith("/") else f"{os.getcwd()}/{path}").split("/")[::-1]
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = at.rpartition("/")[0]
            continue
        here = f"{at}/{name}"
        info = os.lstat(here)
        if info.st_mode & S_IFMT == S_IFLNK:
            links += 1
            if links > LINKS:
                raise OSError(40, "Too many levels of symbolic links", path)
            found = merge(found, _uid(info.st_uid))  # in a sticky directory the owner of the file made it
            target = os.readlink(here)
            at = "" if target.startswith("/") else at
            pending += target.split("/")[::-1]
            continue
        found, at = merge(found, changer(info, here)), here
    return found


def changer(info: os.stat_result, path: str) -> int:
    """Who besides root can change a file with this status: its owner, or ANYBODY by its mode.

    A socket's mode says who may connect, not who listens. In a sticky directory nobody can replace another user's file
    (unlink(2)).
    """
    uid, kind = _uid(info.st_uid), info.st_mode & S_IFMT
    if uid or kind == S_IFSOCK or (kind == S_IFDIR and info.st_mode & 0o1000):
        return uid
    if info.st_mode & 0o002 or (info.st_mode & 0o020 and (info.st_gid or _has_acl(path))):
        return ANYBODY
    return 0


def _has_acl(path: str) -> bool:
    """Whether the group bits may be the mask of an ACL (acl(5)). The group root counts as root."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:
        return False


def _uid(uid: int) -> int:
    """UID; 0 for an unmapped one where root itself is unmapped: in a user namespace that is the machine's root."""
    return 0 if uid == _overflow() else uid


_unmapped: list[int] = []


def _overflow() -> int:
    if not _unmapped:
        try:
            whole = procfs.read("/proc/self/uid_map").split() == ["0", "0", "4294967295"]
            _unmapped.append(-2 if whole else int(procfs.read("/proc/sys/kernel/overflowuid")))
        except (OSError, ValueError):
            _unmapped.append(-2)
    return _unmapped[0]
