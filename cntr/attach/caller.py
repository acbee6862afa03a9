"""The user behind sudo: the user's sockets are reached with this user's rights and no others."""

from __future__ import annotations

import os
import stat

from cntr.errors import CntrError
from cntr.linux import procfs, syscalls


class Caller:
    """Whose sockets they are: the user behind sudo, else whoever runs this.

    uid: as servers see it; own: who to become, -1 for who we are; in_user_namespace: a rootless container's owner, whose ids are mapped.
    """

    def __init__(self) -> None:
        """Raises CntrError: no such user."""
        self.own = self.gid = -1
        self.groups: list[int] = []
        uid, rows = os.getuid(), procfs.id_map(procfs.read("/proc/self/uid_map"))
        outside = procfs.map_id(uid, rows)
        self.uid = uid if outside is None else outside
        self.in_user_namespace = self.uid != uid
        self.home = os.environ.get("HOME", "/")
        word = os.environ.get("SUDO_UID", "")
        if os.geteuid() == 0 and self.uid == 0 and word.isascii() and word.isdecimal() and int(word):
            import pwd

            try:
                user = pwd.getpwuid(int(word))
            except KeyError:
                raise CntrError(f"SUDO_UID={word}: no such user", "unset SUDO_UID, or run cntr by sudo") from None
            self.uid = self.own = user.pw_uid
            self.gid, self.home = user.pw_gid, user.pw_dir
            self.groups = os.getgrouplist(user.pw_name, user.pw_gid)
        self.runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if self.own >= 0 or not self.runtime:
            self.runtime = f"/run/user/{self.uid}"

    def read(self, path: str, limit: int) -> bytes:
        """A regular file that the caller may read, b"" where there is none."""
        if self.own >= 0:
            os.seteuid(self.own)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        finally:
            if self.own >= 0:
                os.seteuid(0)
        try:
            return os.read(fd, limit) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def become(self) -> None:
        """Be the caller for good, with no capability. Raises OSError."""
        if self.own >= 0:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.own, self.own, self.own)
        syscalls.capset(0, 0, 0)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)

    def owns(self, uid: int) -> bool:
        """Whether a socket of UID's may be brought in: the caller's own or root's.

        In a user namespace root can't be told from others; the kernel lets the caller connect to no more than any program of theirs may.
        """
        return self.in_user_namespace or uid in (0, os.getuid() if self.own < 0 else self.own)
