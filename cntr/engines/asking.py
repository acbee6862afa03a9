"""Asks all engines at once, with a deadline: root's own in this process, each user's in a process of that user."""

from __future__ import annotations

import os
import time

from cntr.engines import evidence, trust
from cntr.engines.answer import Answer
from cntr.engines.container import Refused
from cntr.engines.registry import REGISTRY
from cntr.linux import patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from cntr.engines.container import Container
    from cntr.engines.registry import Entry

QUIET_SECONDS = 1.0  # after this time a line says which engines are waited for
EVERYBODYS = ("lxc", "nspawn", "gvisor")  # root asks these for all users: they read no files of users


def ask(
    present: list[Entry], name: str | None, deadline: float, method: str = "find", *, users: bool = True
) -> list[Answer]:
    """Ask each engine for NAME (None: all containers), at once. An engine that misses the deadline counts as a refusal.

    Root asks its own engines first, in the order of PRESENT, then each user's. The users' containers are added to the
    answer of the same engine; refusals are separate answers, with their owner.
    """
    evidence.forget()
    trust.forget()
    theirs = [entry for entry in present if entry in REGISTRY and entry.name not in EVERYBODYS]
    if os.geteuid() != 0 or not theirs or not users:
        return _ask_here(present, name, deadline, method, aloud=True)
    from cntr.engines import users as each_user

    for entry in theirs:
        entry.load()  # before the fork: a user may not be able to read the modules' directory
    asked = each_user.start(
        each_user.who(name is None or method != "find"),
        lambda: each_user.said(_ask_here(theirs, name, deadline - ON_THE_WAY, method)),
    )
    answers = _ask_here(present, name, deadline, method, aloud=True)
    return answers + _add(answers, each_user.hear(asked, deadline))


ON_THE_WAY = 0.05  # extra seconds for an answer's way from a user's process


def _ask_here(
    present: list[Entry], name: str | None, deadline: float, method: str, *, aloud: bool = False
) -> list[Answer]:
    """aloud: name slow engines on a terminal."""
    import _thread  # threading would take 3 ms to import, and only a lock is needed

    answers, waiting = [], []
    for entry in present:
        answer = Answer(entry)
        answers.append(answer)
        if not getattr(entry.load(), "BLOCKING", False):
            _ask_one(answer, name, deadline, method)
            continue
        done = _thread.allocate_lock()
        done.acquire()
        waiting.append((entry.name, done))
        try:
            patience.start(_ask_one, answer, name, deadline, method, done)
        except RuntimeError:  # a limit on the number of processes, the caller's own
            _ask_one(answer, name, deadline, method, done)
    silent = time.monotonic() + QUIET_SECONDS
    slow = [
        pair for pair in waiting if not pair[1].acquire(timeout=_until(min(silent, deadline) if aloud else deadline))
    ]
    if slow and aloud and silent < deadline:
        _wait_aloud(slow, deadline)
    return answers


def _until(moment: float) -> float:
    return max(0.0, moment - time.monotonic())


def _wait_aloud(slow: list[tuple[str, LockType]], deadline: float) -> None:
    from cntr.progress import Progress

    line = Progress()
    line.say(f"waiting for {', '.join(name for name, _ in slow)}")
    for _, done in slow:
        done.acquire(timeout=_until(deadline))
    line.clear()


def _ask_one(answer: Answer, name: str | None, deadline: float, method: str, done: object = None) -> None:
    try:
        module = answer.entry.load()
        if name is None:
            found = module.containers(deadline)
        else:
            question = getattr(module, method, None)
            found = question(name, deadline) if question else []
        answer.containers = [one for one in found if _stands(one)]
        answer.refused = ""
    except Refused as error:
        answer.refuse(error)
    except OSError as error:
        answer.refused = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except Exception as error:  # noqa: BLE001  one engine's bad state file must not hide the others
        answer.refused = f"unreadable state ({type(error).__name__}: {error})"
    finally:
        if done is not None:
            done.release()  # type: ignore[attr-defined]


def _stands(found: Container) -> bool:
    """Whether to accept a container: the process must belong to whoever named it. A user's engines are also asked by
    that user.
    """
    return (
        found.pid <= 0
        or evidence.may_be_named_by(found.pid, found.owner)
        or (found.owner == 0 != os.geteuid() and evidence.belongs_to(found.pid, os.geteuid()))
    )


def _add(answers: list[Answer], lines: list[tuple[int, list[str]]]) -> list[Answer]:
    """Add the answers of users' processes to ANSWERS; return those that are refusals."""
    from cntr.engines import users

    by_name = {answer.entry.name: answer for answer in answers}
    refusals, late = [], set()
    for uid, fields in lines:
        kind, engine, words = fields[:3]
        if kind == "c" and (container := users.container(uid, fields, set(by_name))):
            by_name[engine].containers.append(container)
        elif kind != "c" and (uid not in late if engine not in by_name else words != by_name[engine].refused):
            answer = Answer(by_name[engine].entry if engine in by_name else answers[0].entry, uid)
            answer.refused, answer.stopped = words, kind == "s"
            refusals.append(answer)
            late.add(uid)
    return refusals


def distinct(found: list[Container]) -> list[Container]:
    """FOUND without duplicates: if two engines name a process, the first one keeps it."""
    return list({(c.pid, "" if c.pid else c.rootfs or c.label()): c for c in reversed(found)}.values())[::-1]
