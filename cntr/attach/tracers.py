"""Containers that can trace a session, because their processes hold CAP_SYS_PTRACE too (ptrace(2)).

Or CAP_SYS_ADMIN in a user namespace that the session joins: since Linux 6.7 that has its own binfmt_misc, where its root
says which interpreter execve(2) starts in place of a program, also in a session.

Such a container can do to the session what it can do to itself. So the session must hold nothing more than that:

- /proc/PID/root leads to the tools view: the whole host, and the host's capabilities, are refused without ``--force``
- cntr continues from an executable that cannot be written (CVE-2019-5736), without the variables of its caller: the session's
  processes are forked from it, with all its memory
- no pipe of the caller's is handed over
- the tools run under the container's own seccomp filters

The container's processes do see what is typed and shown in the session, what ``--share`` and ``-e`` bring, and the
caller and reason in the record. One line says so.
"""

from __future__ import annotations

import os

from cntr import engines
from cntr.attach.target import CAP_SYS_ADMIN, CAP_SYS_PTRACE, Target, capability_names
from cntr.attach.tools import HOST_ALL
from cntr.errors import CntrError
from cntr.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach import seccomp
    from cntr.attach.request import Request

# CAP_SYS_MODULE, SYS_RAWIO, SYS_ADMIN, PERFMON, BPF: each can read the memory of every process, and most can write
# it
OF_THE_KERNEL = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 38 | 1 << 39
ANCESTORS = 32  # how many ancestors of a process are checked in its pid namespace


def of(request: Request, target: Target) -> str:
    """Return in words which processes can look into the session and act as it; "" if none can."""
    if "pid" not in target.namespaces or (request.privileged and "user" in target.namespaces):
        return ""  # in the host's pid namespace, or in no user namespace where they have capabilities
    held = target.permitted | target.bounding | _of_ancestors(target)
    own = CAP_SYS_ADMIN if target.as_owner or "user" in target.namespaces else 0
    names = capability_names(held & (CAP_SYS_PTRACE | own))
    if not names:
        return ""
    return f"{target.label} may hold CAP_{names[0].upper()}: its processes can see and do what this session can"


def user_of(request: Request, target: Target) -> str:
    """Name the user of this machine who can do the same from outside, as owner of the user
    namespace (user_namespaces(7)); "" if only root can.
    """
    if os.geteuid() or "user" not in target.namespaces or request.privileged:
        return ""
    from cntr.engines import pids, store

    owner = pids.owner_of(target.pid)
    return f"{store.owner_name(owner)} can see and do what this session can" if owner else ""


def of_owner(pid: int) -> bool:
    """The same for a caller without root, who cannot restart once ``Target`` has entered the container's user
    namespace.
    """
    try:
        return os.geteuid() != 0 and bool(_reach(pid) & (CAP_SYS_PTRACE | CAP_SYS_ADMIN))
    except (OSError, KeyError, ValueError):
        return False


def _reach(pid: int) -> int:
    """The capabilities a process may hold. Raises OSError, KeyError, ValueError."""
    status = procfs.status(procfs.read(f"/proc/{pid}/status"))
    return int(status["CapPrm"], 16) | int(status["CapBnd"], 16)


def _of_ancestors(target: Target) -> int:
    """The capabilities of a process's ancestors in its pid namespace: a worker may have dropped what its
    container's init holds.
    """
    found, pid = 0, target.pid
    for _ in range(ANCESTORS):
        try:
            status = procfs.status(procfs.read(f"/proc/{pid}/status"))
            if status.get("NSpid", "1").split()[-1] == "1":
                break
            pid = int(status["PPid"])
            if not os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.fstat(target.namespaces["pid"])):
                break
            found |= _reach(pid)
        except (OSError, KeyError, ValueError):
            break
    return found


def warnings(request: Request, target: Target, traced: str, outside: str) -> list[str]:
    """What the user must know first, one line each. traced: result of ``of``; outside: of ``user_of``. Raises CntrError
    for what needs --force.
    """
    found = [*([] if target.as_owner else engines.notes(target.container)), *target.notes]
    if request.own_root:
        return found
    if request.tools == HOST_ALL:
        found.append(
            "warning: --tools host:all: the session can read and write this machine's files, as far as its user may"
        )
    if not request.force:
        _check(request, target, traced)
    held = target.permitted | target.bounding | _of_ancestors(target)
    if traced:
        found.append(f"warning: {traced}")
    elif outside:
        found.append(f"warning: {outside}")
    elif held & OF_THE_KERNEL and "user" not in target.namespaces:
        names = ", ".join(f"CAP_{name.upper()}" for name in capability_names(held & OF_THE_KERNEL))
        found.append(
            f"warning: {target.label} may hold {names} of this machine: through the kernel it can see this session"
        )
    return found


def _check(request: Request, target: Target, traced: str) -> None:
    owner = target.container.owner
    others = f"{target.label} is uid {owner}'s" if owner and not target.as_owner else ""
    if request.tools == HOST_ALL and (traced or others):
        raise CntrError(
            f"--tools host:all: {traced or others}",
            "leave it out: the tools view shows this machine's programs; --force brings the whole host all the same",
        )
    if request.privileged and traced:
        raise CntrError(
            f"--privileged: {traced}",
            "leave it out; with --force the container can become root of this machine",
        )


def filters_of(request: Request, target: Target, traced: str, say: Callable[[str], None]) -> list[seccomp.Filter]:
    """The container's seccomp filters, if they are wanted. Raises CntrError if they cannot be read."""
    # An owner without root may not read them, and the container is theirs.
    unasked = bool(traced) and not (request.own_root or request.seccomp or request.force or target.as_owner)
    if not (request.seccomp or unasked) or target.container.state == "rootfs":  # nothing runs there
        return []
    from cntr.attach import seccomp  # most sessions do not need it

    program = target.container.filter
    if program is not None:
        return [seccomp.Filter(program)] if program else []
    from cntr.engines import evidence  # most containers have no filter that matters here

    if unasked and target.seccomp and evidence.state(target.pid) == "paused":  # a paused process cannot be traced
        say(f"warning: {target.label} is paused, its seccomp filters can't be read: the tools run without them")
        return []
    try:
        found = seccomp.filters_of(target.pid, target.label)
    except CntrError as error:
        if unasked:
            error.hint = "--force goes without it: then the container can make any system call, by way of the session"
        raise
    if unasked and found:
        say(
            f"note: {target.label}'s seccomp filters apply to the tools too, since it can trace them: --force runs without them"
        )
    if any(filter.asks_a_listener() for filter in found):
        say(
            f"note: {target.label}'s engine answers some system calls itself (seccomp user notification): they fail with ENOSYS here"
        )
    return found
