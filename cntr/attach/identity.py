"""The session's identity: ids, capabilities, label, limits and environment, taken from the target's process.

``Identity`` is built before the fork; ``assume`` runs in the session's process and imports nothing.
"""

from __future__ import annotations

import errno
import os

from cntr.attach import cgroup, guard, limits, steps
from cntr.attach.target import CAP_SYS_ADMIN, CAP_SYS_PTRACE, Target
from cntr.attach.tools import HOST_ALL
from cntr.errors import CntrError, printable
from cntr.linux import namespaces, process, procfs, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.request import Request
    from cntr.attach.seccomp import Filter

# oom_score_adj: the session is killed before the application (proc(5)); raising the value is always allowed
LIKELIEST_VICTIM = 1000
NO_ID = 0xFFFFFFFF  # (uid_t)-1: setresuid(2) leaves that id unchanged
PASSWD_LIMIT = 1 << 25  # bytes: that of half a million users


class User:
    """The user of a session, in the ids of the target's user namespace."""

    __slots__ = ("gid", "groups", "home", "name", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int] | None, name: str, home: str) -> None:
        """groups: None if the target's own cannot be expressed in its user namespace."""
        self.uid, self.gid, self.groups, self.name, self.home = uid, gid, groups, name, home


def user_of(target: Target, wanted: str | None, *, own_root: bool = False) -> User:
    """Return the target's user, or WANTED: a name or uid, optionally with :group. Raises CntrError.

    own_root: the session sees only the container's files (``exec``), so the groups of the container's /etc/group
    apply. On the tools' files they would be rights that the container grants itself; an attach session gets only
    the groups of the target's process.
    """
    limit = PASSWD_LIMIT if wanted else 1 << 20
    passwd, group = target.read_file("/etc/passwd", limit), target.read_file("/etc/group", limit)
    uid, gid = target.inside(target.uids[1], target.uid_map), target.inside(target.gids[1], target.gid_map)
    held = [inside for outside in target.groups if (inside := target.inside(outside, target.gid_map)) is not None]
    if wanted is None:
        if uid is None or gid is None:
            raise CntrError(
                f"{target.label}: its uid {target.uids[1]} is not mapped in its own user namespace", "try --user 0"
            )
        entry = procfs.passwd_entry(passwd, str(uid))
        return User(uid, gid, held, entry[0] if entry else "", entry[3] if entry else "")
    name, colon, group_name = wanted.partition(":")
    entry = procfs.passwd_entry(passwd, name) if name else None  # an entry without a name matches nobody
    if entry is None and not (name.isascii() and name.isdecimal()):
        raise CntrError(
            f"--user {printable(name) or repr(wanted)}: the container's /etc/passwd has no such user",
            "give a numeric uid[:gid]",
        )
    uid, gid = (entry[1], entry[2]) if entry else (int(name), 0)
    if colon:
        gid = _group(wanted, group_name, group)
    for kind, number, rows in (("uid", uid, target.uid_map), ("gid", gid, target.gid_map)):
        if number >= NO_ID:
            raise CntrError(f"--user {printable(wanted)}: {kind} {number} is none", f"ids end at {NO_ID - 1}")
        if "user" in target.namespaces and procfs.map_id(number, rows) is None:
            raise CntrError(
                f"--user {printable(wanted)}: {kind} {number} is not mapped in the container's user namespace",
                f"`cat /proc/{target.pid}/{kind}_map` shows which ids are",
            )
    claimed = (
        procfs.groups_of(group, entry[0]) if entry and not colon else []
    )  # engines: a group that is given is the only one
    groups = claimed if own_root else [gid for gid in claimed if gid in held]
    home = (entry[3] if entry else "") or ("/" if own_root else "")  # not that of the container's own user
    return User(uid, gid, groups, entry[0] if entry else "", home)


def _group(wanted: str, name: str, group: str) -> int:
    """The gid of GROUP in --user WANTED. group: a number, or a name in the text of a group(5) file."""
    found = int(name) if name.isascii() and name.isdecimal() else procfs.group_id(group, name)
    if found is None:
        raise CntrError(
            f"--user {printable(wanted)}: the container's /etc/group has no such group", "give a numeric gid"
        )
    return found


class Identity:
    """Everything ``assume`` needs, opened and computed before the fork.

    guarded: keeps CAP_SYS_PTRACE in every process of the session (guard.py), so the container's processes are
    refused /proc/PID/{root,fd,mem,environ} of it. privileged: stay the host's root, with its capabilities and
    label. filters: the container's seccomp filters, for the command only; raised: names of limits that were too low
    to run anything.
    """

    def __init__(
        self,
        target: Target,
        user: User,
        request: Request,
        cgroups: cgroup.CgroupJoin,
        proc_fd: int,
        filters: list[Filter],
        *,
        traced: bool,
    ) -> None:
        """proc_fd: the host's /proc. ``exec`` needs no guard: its root is the container's own and holds nothing of
        the host's. traced: whether the container can act as a process of the session.
        """
        self.target, self.user, self.privileged, self.cgroups = target, user, request.privileged, cgroups
        self.proc_fd, self.own_root, self.filters, self.traced = proc_fd, request.own_root, filters, traced
        self.in_view = request.tools != HOST_ALL
        # In the host's pid namespace it would let the session trace root's processes.
        extra = CAP_SYS_PTRACE if "pid" in target.namespaces and not request.own_root else 0
        self.guarded = bool(extra)
        self.bounding = target.bounding | extra
        same_user = user.uid == target.inside(target.uids[1], target.uid_map)
        self.ambient = (target.ambient if same_user and user.uid else 0) | extra
        held = target.permitted if same_user else (0 if user.uid else target.bounding)
        effective = target.effective if same_user else held
        self.permitted = held | self.ambient | extra
        self.effective = effective | self.ambient | extra
        self.inheritable = (target.inheritable if same_user else 0) | self.ambient
        # Installing a filter needs no_new_privs or CAP_SYS_ADMIN, and the exec drops CAP_SYS_ADMIN later. A
        # container that can trace the process in between would gain that capability.
        self.no_new_privs = target.no_new_privs or not request.own_root
        reach = (target.permitted | target.bounding) & (CAP_SYS_PTRACE | CAP_SYS_ADMIN)
        if filters and reach == CAP_SYS_PTRACE:
            self.no_new_privs = True
        self.for_filters = CAP_SYS_ADMIN if filters and not self.no_new_privs else 0
        self.lsm = target.lsm if target.lsm != _own_label() else ""
        self.oom_score_adj = _oom_score_adj(target) if request.own_root else LIKELIEST_VICTIM
        self.personality = int(procfs.read("personality", target.proc_fd), 16) if request.own_root else 0
        # What its own programs create is for its other processes to read. None: the caller's. Linux 4.7.
        umask = procfs.status(procfs.read("status", target.proc_fd)).get("Umask", "22")
        self.umask = int(umask, 8) & 0o777 if request.own_root else None
        theirs = procfs.limits(procfs.read("limits", target.proc_fd))
        self.limits, self.raised = limits.of_session(theirs, core_files=request.own_root)
        self.last_capability = int(procfs.read("/proc/sys/kernel/cap_last_cap"))

    def assume(self, progress: steps.Progress, note: Callable[[str], None]) -> None:
        """Take the identity on, in the session's process. Raises OSError; ``progress.now`` names the step.

        note: called for a refusal the session can live with (resource limits, the oom score).
        """
        progress.now = steps.CGROUP
        self.cgroups.join()
        progress.now = steps.KEYRING
        self._new_keyring(note)
        if self.oom_score_adj is not None:
            self._write_own("oom_score_adj", str(self.oom_score_adj), note)
        if self.privileged:
            process.limits(process.RLIMITS.index("CORE"), (0, 0))
            progress.now = steps.NAMESPACES
            namespaces.join(self.target.namespaces, "cgroup")
            return
        self._set_limits(note)
        progress.now = steps.NAMESPACES
        namespaces.join(self.target.namespaces, "cgroup", "user")
        progress.now = steps.BOUNDING
        self._drop_bounding(self.bounding)
        progress.now = steps.IDS
        if self.guarded:
            process.set_securebits(guard.SECUREBITS)
        self._set_ids(note)
        progress.now = steps.CAPABILITIES
        self._set_capabilities()
        if self.lsm:
            progress.now = steps.LABEL
            self._set_label()
        if self.no_new_privs:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if not self.own_root:
            progress.now = steps.GUARD
            guard.install(keep=self.guarded, view=self.in_view)

    def settle(self) -> None:
        """In the reaper, after forking the command: drop to what the command will hold."""
        if self.for_filters and not self.privileged:
            syscalls.capset(self.effective, self.permitted, self.inheritable)

    def confine(self, progress: steps.Progress) -> None:
        """In the command, right before its exec. Raises OSError."""
        os.umask(self.umask or 0)
        process.set_personality(self.personality)
        if self.filters:
            progress.now = steps.SECCOMP
            # This comes last: a hostile container's filter may return success for calls that drop privileges or
            # close files.
            for filter in self.filters:
                seccomp.install(filter.program, filter.flags)

    def _new_keyring(self, note: Callable[[str], None]) -> None:
        """Leave the caller's session keyring (session-keyring(7)), which may hold Kerberos tickets."""
        try:
            process.join_new_session_keyring()
        except OSError as error:
            # The kernel has no keys; or cntr itself runs in a container whose filter forbids the call.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            note(f"session keyring: {error.strerror}")

    def _drop_bounding(self, kept: int) -> None:
        for capability in range(self.last_capability + 1):
            if not kept >> capability & 1:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)

    def _write_own(self, name: str, text: str, note: Callable[[str], None]) -> None:
        try:
            fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.proc_fd)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            note(f"{name} {text}: {error.strerror}")

    def _set_limits(self, note: Callable[[str], None]) -> None:
        for limit, (soft, hard) in enumerate(self.limits):
            own = process.limits(limit)
            if own == (soft, hard):
                continue
            try:
                process.limits(limit, (soft, hard))
            except OSError:  # EPERM for raising a hard limit
                ceiling = own[1] if own[1] != limits.NO_LIMIT else hard
                lowered = ceiling if soft == limits.NO_LIMIT else min(soft, ceiling)
                process.limits(limit, (lowered, own[1]))
                note(f"resource limit {limit}: {soft}:{hard} refused, {lowered}:{own[1]} kept")

    def _set_label(self) -> None:
        """Take on the target's label: the AppArmor profile now (aa_change_profile(2)), the SELinux context at exec
        (setexeccon(3)).

        AppArmor's change at exec clears the parent-death signal (apparmor_bprm_committing_creds): a SIGKILL of the
        monitor would leave the command running. SELinux permits an immediate change (dyntransition) to almost no
        domain.
        """
        # AppArmor shows "profile (mode)" and takes "changeprofile profile"; SELinux shows and takes the bare
        # context.
        profile, parenthesis, _ = self.lsm.partition(" (")
        apparmor = bool(parenthesis) or profile == "unconfined"
        name, text = ("current", f"changeprofile {profile}") if apparmor else ("exec", self.lsm)
        try:
            fd = os.open(f"self/attr/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.proc_fd)
            try:
                os.write(fd, os.fsencode(text))
            finally:
                os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.lsm) from None

    def _set_ids(self, note: Callable[[str], None]) -> None:
        user = self.user
        try:
            os.setgroups(user.groups or [])
        except PermissionError:  # user_namespaces(7): "deny" in /proc/PID/setgroups
            note("supplementary groups: setgroups is denied in the container's user namespace")
        os.setresgid(user.gid, user.gid, user.gid)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)  # otherwise leaving uid 0 would clear the sets
        os.setresuid(user.uid, user.uid, user.uid)
        if self.own_root:  # the tools' is the caller's
            os.umask(self.target.umask)

    def _set_capabilities(self) -> None:
        more = self.for_filters
        syscalls.capset(self.effective | more, self.permitted | more, self.inheritable)
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in range(self.last_capability + 1):
            if self.ambient >> capability & 1:
                syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, capability)


def _own_label() -> str:
    try:
        return procfs.read("/proc/self/attr/current").strip("\0\n")
    except OSError:
        return ""


def _oom_score_adj(target: Target) -> int | None:
    """The target's oom_score_adj, None if ours is the same."""
    theirs = int(procfs.read("oom_score_adj", target.proc_fd))
    return theirs if theirs != int(procfs.read("/proc/self/oom_score_adj")) else None
