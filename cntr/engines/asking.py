"""Asking all engines at once, with a deadline: root's own here, users' engines each in a process of that user."""

from __future__ import annotations

import os
import time

from cntr.engines import evidence, trust
from cntr.engines.container import Refused
from cntr.engines.registry import REGISTRY, Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from cntr.engines.container import Container
    from cntr.engines.registry import Entry

QUIET_SECONDS = 1.0  # before it is said who is waited for
EVERYBODYS = ("lxc", "nspawn", "gvisor")  # root asks these for all users: they read no file of a user's


def ask(
    present: list[Entry], name: str | None, deadline: float, method: str = "find", *, users: bool = True
) -> list[Answer]:
    """Ask each engine for NAME (None: all containers), all at once; who does not answer by the deadline has refused.

    Root asks its own engines first, in the order of PRESENT, then each user's: their containers are among those of the same
    engine's answer, and what they refused is an answer of its own, with its owner.
    """
    evidence.forget()
    trust.forget()
    theirs = [entry for entry in present if entry in REGISTRY and entry.name not in EVERYBODYS]
    if os.geteuid() != 0 or not theirs or not users:
        return _ask_here(present, name, deadline, method, aloud=True)
    from cntr.engines import users as each_user

    for entry in theirs:
        entry.load()  # before the fork: a user may not be able to read where the modules lie
    asked = each_user.start(
        each_user.who(name is None or method != "find"),
        lambda: each_user.said(_ask_here(theirs, name, deadline - ON_THE_WAY, method)),
    )
    answers = _ask_here(present, name, deadline, method, aloud=True)
    return answers + _add(answers, each_user.hear(asked, deadline))


ON_THE_WAY = 0.05  # seconds from a user's process back to here


def _ask_here(
    present: list[Entry], name: str | None, deadline: float, method: str, *, aloud: bool = False
) -> list[Answer]:
    """aloud: say on a terminal who is waited for."""
    import _thread  # threading costs 3 ms of imports, and all that is needed is a lock to wait on

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
        _thread.start_new_thread(_ask_one, (answer, name, deadline, method, done))
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
    """Whether the word of who named it counts for its process; a user's engines are asked by that user too."""
    return (
        found.pid <= 0
        or evidence.may_be_named_by(found.pid, found.owner)
        or (found.owner == 0 != os.geteuid() and evidence.belongs_to(found.pid, os.geteuid()))
    )


def _add(answers: list[Answer], lines: list[tuple[int, list[str]]]) -> list[Answer]:
    """Put what users' processes have said to the ANSWERS of the engines; what they refused are the answers returned."""
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
    """FOUND without the repetitions: a process that two engines know is the first one's container."""
    return list({(c.pid, "" if c.pid else c.rootfs or c.label()): c for c in reversed(found)}.values())[::-1]
