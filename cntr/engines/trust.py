"""Whose word is it? Who besides root could have written a path, and whose claims count for the caller.

The rule that every engine's module keeps to: a name leads to a process by root's own sources (files, sockets and directories that
only root can change, all the way up), or by a user's sources for that user's own processes alone.
"""

from __future__ import annotations

import os

from cntr.linux import procfs

ANYBODY = -1  # several users, or all of them, could have written it: nobody's word
LINKS = 40  # symbolic links followed in one path, as many as the kernel does (path_resolution(7))
S_IFMT, S_IFDIR, S_IFLNK, S_IFREG, S_IFSOCK = 0o170000, 0o040000, 0o120000, 0o100000, 0o140000

SOME = 20_000  # directory entries looked through where anybody makes them

_owners: dict[str, int] = {}  # of the paths of this look-up
_speaker = -1  # the uid that the process speaks for: see ``speak_for``


def forget() -> None:
    """A new look-up begins."""
    _owners.clear()


def speak_for(uid: int) -> None:
    """From now on only UID's sources count: this process was started to say what that user's engines know."""
    global _speaker
    _speaker = uid
    forget()


def accepts(owner: int) -> bool:
    """Whether the words of OWNER (of ``owner``) count here: root takes root's alone and asks users apart; a user also their own."""
    if _speaker >= 0:
        return owner == _speaker
    me = os.geteuid()
    return owner in (0, me)


def owner(path: str) -> int:
    """The uid of the one user besides root who can decide what is at PATH: 0 for root alone, ANYBODY. Raises OSError.

    All directories on the way count, and those that symbolic links lead through.
    """
    if path in _owners:
        return _owners[path]
    info = os.lstat(path)
    parent = path.rpartition("/")[0]
    if info.st_mode & S_IFMT == S_IFLNK or not parent or "." in parent.split("/") or ".." in path.split("/"):
        found = _walk(path)
    else:  # the directory's answer serves all that are in it
        found = merge(owner(parent), changer(info, path))
    _owners[path] = found
    return found


def owner_or_anybody(path: str) -> int:
    """The same, ANYBODY for what is not there or can't be looked at."""
    try:
        return owner(path)
    except OSError:
        return ANYBODY


def some_names(path: str, beginning: str) -> list[str]:
    """The names that begin so, of the first SOME in a directory where anybody may make as many as they like."""
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
    """Whether PATH is of a file system that answers: no mount point, or a tmpfs as logind makes it."""
    types = [mount.fstype for mount in mounts if mount.mount_point == path]
    return not types or types[-1] == "tmpfs"


def merge(above: int, here: int) -> int:
    """Whose word it is that two have a hand in: a user's who has what is above, whoever they let in below (their subordinate ids)."""
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
            found = merge(found, _uid(info.st_uid))  # in a sticky directory it is its owner who made it
            target = os.readlink(here)
            at = "" if target.startswith("/") else at
            pending += target.split("/")[::-1]
            continue
        found, at = merge(found, changer(info, here)), here
    return found


def changer(info: os.stat_result, path: str) -> int:
    """Who besides root can change what has this status: its owner, or ANYBODY by its mode bits.

    A socket's bits say who may connect, not who listens. In a sticky directory nobody replaces what is another's (unlink(2)).
    """
    uid, kind = _uid(info.st_uid), info.st_mode & S_IFMT
    if uid or kind == S_IFSOCK or (kind == S_IFDIR and info.st_mode & 0o1000):
        return uid
    if info.st_mode & 0o002 or (info.st_mode & 0o020 and (info.st_gid or _has_acl(path))):
        return ANYBODY
    return 0


def _has_acl(path: str) -> bool:
    """Whether the group bits may be the mask of other users' rights (acl(5)); the group root alone is root."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:
        return False


def _uid(uid: int) -> int:
    """UID, 0 for one that is not mapped where root itself is not: for root in a user namespace that is whoever made the machine."""
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
