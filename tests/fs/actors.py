"""Who makes a call: root, a uid with supplementary groups, a uid in a user namespace, root without
one capability.

``actor(function, *args)`` runs it in a forked child that has become that actor, and returns its
result or raises its error.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import syscalls

UID, GID, GROUPS = 20001, 20001, (20101, 20102)
OTHER_UID, OTHER_GID = 20002, 20002
SUBUID_START = 300000  # first host id of the user namespace's range
USERNS_RANGE = 1000


class Unsupported(Exception):
    """The backing filesystem or the kernel lacks what a check tests; the message names it."""


class ActorFailed(AssertionError):
    """The child failed with something other than an OSError; carries its traceback."""


@dataclass(frozen=True)
class Actor:
    """A set of credentials. uid, gid, groups are ids as seen *inside* the user namespace, if there is one."""

    name: str
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    user_namespace: bool = False
    dropped_capabilities: tuple[int, ...] = ()
    kept_capabilities: tuple[int, ...] = field(default=())

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: int = 60) -> Any:
        """The result of function(*args) run as this actor; an OSError it raises is raised here."""
        kind, value = _in_child(self, function, args, timeout)
        if kind == "error":
            raise value
        if kind == "failed":
            raise ActorFailed(f"as {self.name}:\n{value}")
        return value

    def become(self) -> None:
        """Change the credentials of the calling process (not undone: call it in a child)."""
        if self.user_namespace:
            _enter_user_namespace()
        if not self.uid and not self.gid and not self.groups and not self.dropped_capabilities:
            return
        if self.kept_capabilities:
            syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if self.kept_capabilities:
            mask = sum(1 << number for number in self.kept_capabilities)
            syscalls.set_capabilities(mask, mask)
        if self.dropped_capabilities:
            mask = syscalls.capabilities() & ~sum(1 << number for number in self.dropped_capabilities)
            syscalls.set_capabilities(mask, mask)

    def host_uid(self, uid: int | None = None) -> int:
        """UID (default: the actor's own) as seen outside its user namespace."""
        uid = self.uid if uid is None else uid
        return uid + SUBUID_START if self.user_namespace else uid

    host_gid = host_uid


ROOT = Actor("root")
USER = Actor("user", UID, GID, GROUPS)
OTHER = Actor("other", OTHER_UID, OTHER_GID)
NAMESPACE_ROOT = Actor("namespace-root", user_namespace=True)
NAMESPACE_USER = Actor("namespace-user", 7, 7, (8, 9), user_namespace=True)
ACTORS = (ROOT, USER, OTHER, NAMESPACE_ROOT, NAMESPACE_USER)


def _enter_user_namespace() -> None:
    """A new user namespace with ids 0…999 = 300000…300999; a helper outside it writes the maps."""
    ready_read, ready_write = os.pipe()
    pid = os.getpid()
    helper = os.fork()
    if helper == 0:
        try:
            os.read(ready_read, 1)
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(f"0 {SUBUID_START} {USERNS_RANGE}")
            os._exit(0)
        finally:
            os._exit(1)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.write(ready_write, b"x")
    _, status = os.waitpid(helper, 0)
    os.close(ready_read)
    os.close(ready_write)
    if status:
        raise RuntimeError("the user namespace's id maps could not be written")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def fork() -> int:
    """os.fork without Python 3.12's warning: the suite's children make only system calls, and then _exit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _in_child(actor: Actor, function: Callable[..., Any], args: tuple[Any, ...], timeout: int) -> tuple[str, Any]:
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    pid = fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            os.close(read_end)
            answer = _answer(actor, function, args)
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not answer:
        return "failed", f"the child ended without an answer, wait status {status:#x}"
    result: tuple[str, Any] = pickle.loads(answer)
    return result


def _answer(actor: Actor, function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        actor.become()
        return pickle.dumps(("result", function(*args)))
    except OSError as error:
        return pickle.dumps(("error", OSError(error.errno, error.strerror, error.filename)))
    except Unsupported as reason:
        return pickle.dumps(("error", reason))
    except BaseException:
        return pickle.dumps(("failed", traceback.format_exc()))
