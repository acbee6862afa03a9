"""The user behind sudo. The user's sockets are reached with this user's rights only."""

from __future__ import annotations

import os
import stat

from cntr.audit import behind_sudo
from cntr.errors import CntrError
from cntr.linux import procfs, syscalls


class Caller:
    """The owner of the sockets: the user behind sudo, else the user who runs cntr.

    uid: as servers see it; own: the uid to switch to, -1 to stay; in_user_namespace: the caller owns a rootless
    container and its ids are mapped.
    """

    def __init__(self) -> None:
        """Raises CntrError if there is no such user."""
        self.own = self.gid = -1
        self.groups: list[int] = []
        uid, rows = os.getuid(), procfs.id_map(procfs.read("/proc/self/uid_map"))
        outside = procfs.map_id(uid, rows)
        self.uid = uid if outside is None else outside
        self.in_user_namespace = self.uid != uid
        self.home = os.environ.get("HOME", "/")
        behind = behind_sudo.caller()
        if behind and self.uid == 0:
            import pwd

            try:
                user = pwd.getpwuid(behind[0])
            except KeyError:
                raise CntrError(f"SUDO_UID={behind[0]}: no such user", "unset SUDO_UID, or run cntr by sudo") from None
            self.uid = self.own = user.pw_uid
            self.gid, self.home = user.pw_gid, user.pw_dir
            self.groups = os.getgrouplist(user.pw_name, user.pw_gid)
        self.runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if self.own >= 0 or not self.runtime:
            self.runtime = f"/run/user/{self.uid}"

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a regular file that the caller may read, b"" if there is none."""
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
        """Switch to the caller's ids for good, without capabilities. Raises OSError."""
        if self.own >= 0:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.own, self.own, self.own)
        syscalls.capset(0, 0, 0)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)

    def owns(self, uid: int) -> bool:
        """Whether a socket owned by UID may be brought into a session: the caller's own or root's.

        In a user namespace root cannot be told from other unmapped users. The kernel still lets the caller connect
        only where any of the caller's programs could.
        """
        return self.in_user_namespace or uid in (0, os.getuid() if self.own < 0 else self.own)
