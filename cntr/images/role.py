"""The identity of a stand-in: user, groups, capabilities, limits, working directory. Runs in its process, in the
container's root.
"""

from __future__ import annotations

import os

from cntr.images import below
from cntr.images.room import Room
from cntr.linux import process, procfs, seccomp, syscalls

TEXT_LIMIT = 1 << 20


class Role:
    """What ``assume`` takes on; ``room.step`` names the current step."""

    def __init__(self, room: Room) -> None:
        """room: already entered."""
        self.room, self.made, self.root, self.write = room, room.made, room.root, room.write
        self.profile = ""  # AppArmor profile for the exec

    def read(self, path: str) -> str:
        """The text of a regular file below the root, "" if there is none."""
        try:
            return os.fsdecode(below.head(self.root, path, TEXT_LIMIT))
        except OSError:
            return ""

    def assume(self) -> None:
        """Take on user, groups, capabilities, limits and working directory. Raises OSError."""
        made = self.made
        self.room.step = "look up its user"
        try:
            uid, gid, groups, home = self._user()
        except OSError as error:
            if made.exact:
                raise
            self.room.tell(f"{error.strerror}: root in its place")
            uid, gid, groups, home = 0, 0, [], "/"
        made.environment.setdefault("HOME", home or "/")
        self.room.step = f"change to its working directory {made.directory}"
        relative = made.directory.lstrip("/") or "."
        if self._find_directory(relative) < 0:
            if self.write or made.read_only:
                relative = "."  # the engine creates it at the start; here nothing is changed for that
            elif not below.status(self.root, relative):
                try:
                    below.make(self.root, relative, is_dir=True)
                except OSError:
                    pass  # below a file, or a dangling link
        fd = self._find_directory(relative)
        if fd < 0:
            self.room.fault(NotADirectoryError(20, ""), f"its working directory {made.directory}")
            fd = os.dup(self.root)
        os.fchdir(fd)
        os.close(fd)
        if self.room.filter:
            self.room.step = "take on its system call filter"
            seccomp.install(self.room.filter)  # while CAP_SYS_ADMIN in our own user namespace is held
        self.room.step = "take on its capabilities"
        last = int(procfs.read("/proc/sys/kernel/cap_last_cap"))
        for capability in range(last + 1):
            if not made.capabilities >> capability & 1:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        if made.no_new_privs:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        self._take_profile()
        self._limit()  # after all opening of files
        self.room.step = "take on its ids"
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.umask(made.umask & 0o777)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)  # until the exec
        os.setresuid(uid, uid, uid)
        allowed = made.capabilities & syscalls.permitted_capabilities()
        ambient = made.ambient & allowed if uid else 0
        held = ambient if uid else allowed
        syscalls.capset(held, held, ambient)
        for capability in range(last + 1):
            if ambient >> capability & 1:
                syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, capability)

    def _take_profile(self) -> None:
        """Set the AppArmor profile for the exec (aa_change_onexec(2)), if AppArmor is on; sessions inherit it. Raises
        OSError.
        """
        profile = self.made.apparmor
        if profile in ("", "unconfined") or self.made.owner:
            return
        self.room.step = "take on its AppArmor profile"
        try:
            self._attribute("current")
        except OSError:  # ENOENT: a kernel before 5.8, or without AppArmor; EINVAL: it is off
            return
        try:
            self._at_exec(profile)
        except OSError as error:  # ENOENT: it is not loaded
            self.room.fault(error, f"its AppArmor profile {profile}")
        else:
            self.profile = profile

    def _at_exec(self, profile: str) -> None:
        fd = os.open("self/attr/apparmor/exec", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.room.proc)
        try:
            os.write(fd, f"exec {profile}".encode())
        finally:
            os.close(fd)

    def _attribute(self, name: str) -> bytes:
        fd = os.open(f"self/attr/apparmor/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.room.proc)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def execute(self) -> None:
        """Execute the stand-in's program (execveat(2)). Raises OSError."""
        try:
            self._execute()
        except PermissionError as error:
            if not self.profile:
                raise
            self.room.fault(error, f"its AppArmor profile {self.profile}")  # it forbids our program
            self._at_exec("unconfined")
            self._execute()

    def _execute(self) -> None:
        program, environment = self.room.program, self.made.environment
        try:
            os.execve(program, ["cntr-stand-in"], environment)
        except FileNotFoundError:  # fexecve(3) of Linux 5.10 and glibc 2.31
            os.execve(f"/proc/self/fd/{program}", ["cntr-stand-in"], environment)

    def _limit(self) -> None:
        """Set its resource limits, as far as ours allow. Raises OSError."""
        self.room.step = "set its limits"
        for name, (soft, hard) in self.made.limits.items():
            if name.removeprefix("RLIMIT_") not in process.RLIMITS:
                continue
            number = process.RLIMITS.index(name.removeprefix("RLIMIT_"))
            own = process.limits(number)[1]
            ceiling = hard if own < 0 else own if hard < 0 else min(hard, own)  # -1: unlimited
            low = ceiling if soft < 0 else soft if ceiling < 0 else min(soft, ceiling)
            process.limits(number, (low, ceiling))

    def _find_directory(self, relative: str) -> int:
        try:
            return below.opened(self.root, relative, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return -1

    def _user(self) -> tuple[int, int, list[int], str]:
        """(uid, gid, groups, home) for the configuration's USER[:GROUP], as runc resolves it. Raises OSError."""
        name, _, group = self.made.user.partition(":")
        name = name or "0"
        passwd, groups = self.read("etc/passwd"), self.read("etc/group")
        entry = procfs.passwd_entry(passwd, name)
        if entry is None and not (name.isascii() and name.isdecimal() and len(name) < 11):
            raise OSError(2, f"its /etc/passwd has no user {name[:60]}")
        uid, gid, home = (entry[1], entry[2], entry[3]) if entry else (int(name), 0, "/")
        more = [] if group or entry is None else procfs.groups_of(groups, entry[0])
        if group:
            number = (
                int(group)
                if group.isascii() and group.isdecimal() and len(group) < 11
                else procfs.group_id(groups, group)
            )
            if number is None:
                raise OSError(2, f"its /etc/group has no group {group[:60]}")
            gid = number
        if self.made.own_group:
            more = [gid, *(one for one in more if one != gid)]
        for one in self.made.groups:
            number = int(one) if one.isascii() and one.isdecimal() and len(one) < 11 else procfs.group_id(groups, one)
            if number is not None and number not in more:
                more.append(number)
        if max(uid, gid, *more, 0) >= 0xFFFFFFFF:
            raise OSError(22, "an id that is none")
        return uid, gid, more[:65536], home
