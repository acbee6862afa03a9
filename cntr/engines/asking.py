"""Asking engines, all at once, and by a deadline."""

from __future__ import annotations

import time

from cntr.engines import evidence
from cntr.engines.container import NotRunning, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.container import Container
    from cntr.engines.registry import Entry

LATE = ("no answer in time", "timed out")  # the words for both ways to be late: here, and of a socket


class Answer:
    """What one engine said: its containers, or why it refused."""

    __slots__ = ("containers", "entry", "refused", "stopped")

    def __init__(self, entry: Entry) -> None:
        """Nothing heard yet."""
        self.entry, self.refused, self.stopped = entry, LATE[0], False
        self.containers: list[Container] = []


def ask(present: list[Entry], name: str | None, deadline: float, method: str = "find") -> list[Answer]:
    """Ask each engine for NAME (None: all containers), all at once; who does not answer by the deadline has refused."""
    import _thread  # threading costs 3 ms of imports, and all that is needed is a lock to wait on

    evidence.forget()
    answers, waiting = [], []
    for entry in present:
        answer = Answer(entry)
        answers.append(answer)
        if not getattr(entry.load(), "BLOCKING", False):
            _ask_one(answer, name, deadline, method)
            continue
        done = _thread.allocate_lock()
        done.acquire()
        waiting.append(done)
        _thread.start_new_thread(_ask_one, (answer, name, deadline, method, done))
    for done in waiting:
        done.acquire(timeout=max(0.0, deadline - time.monotonic()))
    return answers


def _ask_one(answer: Answer, name: str | None, deadline: float, method: str, done: object = None) -> None:
    try:
        module = answer.entry.load()
        if name is None:
            answer.containers = module.containers(deadline)
        else:
            question = getattr(module, method, None)
            answer.containers = question(name, deadline) if question else []
        answer.refused = ""
    except Refused as error:
        answer.refused, answer.stopped = str(error), isinstance(error, NotRunning)
    except OSError as error:
        answer.refused = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    except Exception as error:  # noqa: BLE001  one engine's bad state file must not hide the others
        answer.refused = f"unreadable state ({type(error).__name__}: {error})"
    finally:
        if done is not None:
            done.release()  # type: ignore[attr-defined]


def distinct(found: list[Container]) -> list[Container]:
    """FOUND without the repetitions: a process that two engines know is the first one's container."""
    return list({(c.pid, "" if c.pid else c.rootfs or c.label()): c for c in reversed(found)}.values())[::-1]
