"""The rights of the user who called sudo: for what a command does on this machine, beside the container.

Who may run `sudo cntr` may be allowed some containers only, by root's policy or in sudoers(5). Making a file, running a
command or talking to a daemon with root's rights would be more than that.
"""

from __future__ import annotations

import os

from cntr.linux import procfs


def caller() -> tuple[int, int] | None:
    """(uid, gid) of the user for whom sudo(8), pkexec(1) or doas(1) has started this process as root; None for none."""
    if os.geteuid():
        return None
    uid, gid = (os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID"))
    if not _is_number(uid):
        user = os.environ.get("PKEXEC_UID") or os.environ.get("DOAS_USER", "")
        entry = procfs.passwd_entry(procfs.read("/etc/passwd"), user) if user else None
        return (entry[1], entry[2]) if entry and entry[1] else None
    if not int(uid):
        return None
    if not _is_number(gid):
        entry = procfs.passwd_entry(procfs.read("/etc/passwd"), uid)
        return int(uid), entry[2] if entry else int(uid)
    return int(uid), int(gid)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


class CallerOpener:
    """A scope in which whoever called sudo makes, opens and removes files and connects to sockets by their own rights;
    others by those that they have.
    """

    def __init__(self) -> None:
        self.ids = caller()
        self.groups, self.gid = os.getgroups(), os.getegid()

    def __enter__(self) -> None:
        """Raises OSError."""
        if self.ids:
            uid, gid = self.ids
            self._take_groups()
            os.setegid(gid)
            os.seteuid(uid)  # clears the effective capabilities until it is 0 again (capabilities(7))

    def __exit__(self, *_: object) -> None:
        if self.ids:
            os.seteuid(0)
            os.setegid(self.gid)
            os.setgroups(self.groups)

    def _take_groups(self) -> list[str]:
        """Take on the user's groups; return the user's name, home and shell, if there are such. Raises OSError."""
        assert self.ids
        uid, gid = self.ids
        entry = procfs.passwd_entry(procfs.read("/etc/passwd"), str(uid))
        os.setgroups(os.getgrouplist(entry[0], gid) if entry else [gid])
        return [entry[0], entry[3]] if entry else []

    def become(self, variables: dict[str, str]) -> None:
        """In a process about to run a command: be that user for good, with the name and home in VARIABLES. Raises OSError."""
        if self.ids:
            uid, gid = self.ids
            for key, value in zip(("USER", "HOME"), self._take_groups()):
                variables[key] = value
            variables["LOGNAME"] = variables.get("USER", "")
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
