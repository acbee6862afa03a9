"""Finds the one running container with a name, or raises an error that says which engines were asked and what each
answered.
"""

from __future__ import annotations

import os
import time

from cntr.engines import pids, plugins
from cntr.engines.answer import LATE
from cntr.engines.asking import ask, distinct
from cntr.engines.container import NotRunning, plain
from cntr.engines.registry import REGISTRY
from cntr.errors import AmbiguousTarget, TargetNotFound, printable, with_sudo
from cntr.linux import host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.engines.answer import Answer
    from cntr.engines.container import Container
    from cntr.engines.registry import Entry

ASK_SECONDS = 0.8  # an unknown name is reported within a second, if every engine has answered
LATE_SECONDS = 2.0  # root's own engines get this again before a name counts as unknown: the machine may be busy
ALL = "`cntr ps --all` lists what there is, running or not"
NAMED_SECONDS = 10.0  # when the user names the engine, a slow one gets more time


def find(target: str) -> Container:
    """Find the one running container for TARGET: NAME, ENGINE:NAME, or a number that may be a name. Raises
    TargetNotFound, AmbiguousTarget.
    """
    if pids.is_pid(target):
        return _numbered(target)
    prefix, colon, rest = target.partition(":")
    known = REGISTRY  # looking for third-party engines takes longer than asking Docker
    named = _called(prefix, known) if colon and rest else []
    if not named:
        known = plugins.entries()
        named = _called(prefix, known) if colon and rest else []
    if named:
        return _only(target, rest, prefix, named, known, time.monotonic() + NAMED_SECONDS)
    present = [entry for entry in known if entry.present()]
    return _only(target, target, "", present, known, time.monotonic() + ASK_SECONDS)


def _numbered(target: str) -> Container:
    """A number: the container of that name, else the process; an error if both exist and differ.

    If the process is in no container, all engines are asked as for any name: attaching to it would
    mean attaching to the host. A process in a container is usually what is meant, so then only
    engines are asked whose files show that they may have the name.
    """
    missing, alone = None, False
    try:
        found_process = pids.resolve(target)
        alone = pids.is_nobodys(found_process.pid)
    except TargetNotFound as error:
        missing = error
    deadline = time.monotonic() + ASK_SECONDS
    if missing or alone:
        known = plugins.entries()
        asked = [entry for entry in known if entry.present()]
        found, answers = _find(target, [entry.name for entry in known], asked, deadline, bare=True)
        stopped = [answer for answer in answers if answer.stopped and not answer.owner]
    else:
        asked, stopped = [entry for entry in REGISTRY if entry.may_have(target)], []
        found = [one for answer in ask(asked, target, deadline, users=False) for one in answer.containers]
        if asked and not found:
            later = ask(asked, target, deadline, "find_by_process", users=False)
            found = [one for answer in later for one in answer.containers]
    exact = [one for one in found if target in (one.name, one.id)]
    found = distinct(exact or ([] if _is_called(target, stopped) else found))
    if stopped and not found:
        raise _not_found(target, stopped, [], "; pid:" + target + " is a process" if not missing else "")
    if not found:
        if missing:
            raise TargetNotFound(f"{missing.message}, and no running container of that name", missing.hint)
        found_process.note = f"pid {target} is in no container: it is a process of this host" if alone else ""
        return found_process
    if len(found) == 1 and (missing or found[0].pid == found_process.pid or (alone and exact and _trusted(found))):
        return found[0]
    raise _ambiguous(target, found if missing else [*found, found_process])


def _is_called(name: str, answers: list[Answer]) -> bool:
    """Whether a container of root's (or the caller's own) that does not run has exactly this name."""
    return any(answer.called == name for answer in answers if answer.stopped and not answer.owner)


def _called(prefix: str, known: tuple[Entry, ...]) -> list[Entry]:
    return [entry for entry in known if prefix in (entry.name, *entry.aliases)]


def _only(
    target: str, name: str, prefix: str, asked: list[Entry], known: tuple[Entry, ...], deadline: float
) -> Container:
    names = [entry.name for entry in (asked if prefix else known)]
    found, answers = _find(name, names, asked, deadline, bare=not prefix)
    # An exact match takes precedence over a prefix: that of a container that does not run, too.
    exact = [container for container in found if name in (container.name, container.id)]
    found = [] if not exact and _is_called(name, answers) else found
    own = [container for container in exact or found if container.engine == prefix]
    found = distinct(own or exact or found)
    if len(found) == 1:
        return found[0]
    if not found:
        absent = (
            [entry for entry in asked if not entry.present()]
            if prefix
            else [entry for entry in known if entry not in asked]
        )
        error = _not_found(target, answers, [entry.name for entry in absent])
        if error.hint == ALL and (meant := _meant(name, min(deadline, time.monotonic() + ASK_SECONDS))):
            error.hint = f"did you mean {meant}? {ALL}"
        raise error
    raise _ambiguous(target, found)


def _find(
    name: str, names: list[str], asked: list[Entry], deadline: float, *, bare: bool = False
) -> tuple[list[Container], list[Answer]]:
    """The containers that match NAME, and the answers. Another user's container counts only if root (or the calling
    user) has none. bare: no engine is named, so that late ones are asked once more.

    Otherwise a user could give their container the name, or the id prefix, of one of root's. Raises AmbiguousTarget if
    it may be one of a late engine's.
    """
    answers = ask(asked, name, deadline)
    found = [container for answer in answers for container in answer.containers]
    if not _trusted(found):
        later = ask(asked, name, _at_least(deadline), "find_by_process")
        found += [container for answer in later for container in answer.containers]
        answers += [answer for answer in later if answer.stopped]
    late = [answer.entry for answer in answers if answer.refused in LATE and not answer.owner]
    if bare and late and not _settled(found, answers):
        again = {answer.entry.name: answer for answer in ask(late, name, time.monotonic() + LATE_SECONDS, users=False)}
        found += [container for answer in again.values() for container in answer.containers]
        answers = [answer if answer.owner else again.get(answer.entry.name, answer) for answer in answers]
    if not _settled(found, answers):
        found += _by_command(answers, names, name, _at_least(deadline))
        if not found:  # on a slow machine an engine may have answered while the commands ran
            found = [container for answer in answers for container in answer.containers]
    slow = [answer.entry.name for answer in answers if answer.refused in LATE and not answer.owner]
    if found and slow and not _trusted(found):
        raise one_of_users(name, slow, found[0].engine, found[0].label(), found[0].owner, found[0].pid)
    return _trusted(found) or found, answers


def _at_least(deadline: float) -> float:
    """DEADLINE, or a moment from now: an engine that hangs has used up the time of what is asked after it."""
    return max(deadline, time.monotonic() + ASK_SECONDS / 2)


def _settled(found: list[Container], answers: list[Answer]) -> bool:
    """Whether there is such a container of root's (or the caller's own), running or not."""
    return bool(_trusted(found)) or any(answer.stopped and not answer.owner for answer in answers)


def _trusted(found: list[Container]) -> list[Container]:
    return [container for container in found if container.owner in (0, os.geteuid())]


def one_of_users(target: str, late: list[str], engine: str, label: str, owner: int, pid: int = 0) -> AmbiguousTarget:
    """The error if only a user's container has the name and engines of root's are LATE: the user must not profit from
    that. pid: 0 if it does not run.
    """
    mine = f"or {printable(label)} if that is the one"
    if engine in late:
        mine = f"or pid:{pid} if that is the one" if pid else "or look for why it is slow"
    said = f"{', '.join(late)} did not answer; {printable(label)}{_of(owner)} is called so"
    return AmbiguousTarget(f"{printable(target[:200])}: {said}", f"try again, {mine}")


def _ambiguous(target: str, found: list[Container]) -> AmbiguousTarget:
    listed = ", ".join(f"{c.label()} (pid {c.pid}, {printable(c.id[:12])}{_of(c.owner)})" for c in found[:8])
    listed += f" and {len(found) - 8} more" if len(found) > 8 else ""
    return AmbiguousTarget(
        f"{printable(target[:200])}: {len(found)} containers answer to this name: {listed}", "say engine:name, or an id"
    )


def _of(owner: int) -> str:
    if not owner:
        return ""
    from cntr.engines import store

    return f", of {store.owner_name(owner)}"


def _by_command(answers: list[Answer], names: list[str], name: str, deadline: float) -> list[Container]:
    """What the engines' commands find; they are asked last. Refusals are stored in ANSWERS."""
    from cntr.engines import fallback

    found, refused = fallback.find(name, names, deadline)
    for answer in answers:
        error = refused.get(answer.entry.name)
        if error and (not answer.refused or isinstance(error, NotRunning)):
            answer.refuse(error)
    return found


def _not_found(target: str, answers: list[Answer], absent: list[str], more: str = "") -> TargetNotFound:
    """The error that says which engines were asked, which are absent, and which refused and why."""
    shown = printable(target[:200])
    shown = shown if shown == shown.strip() else repr(shown)
    stopped = [f"{printable(answer.refused[:300])}{_of(answer.owner)}" for answer in answers if answer.stopped]
    if stopped:
        hint = next((printable(answer.hint) for answer in answers if answer.stopped and answer.hint), "")
        hint = hint or "start it first; a container that has ended has no process to join"
        missing = TargetNotFound(f"{shown}: {'; '.join(stopped)}", hint + more)
        missing.restarting = any(answer.stopped and "restarting" in answer.refused for answer in answers)
        return missing
    refused = [
        f"{answer.entry.name}{_of(answer.owner)} ({printable(answer.refused[:300])})"
        for answer in answers
        if answer.refused
    ]
    quiet = [answer.entry.name for answer in answers if not answer.refused]
    said = "; ".join(
        f"{words}: {', '.join(names)}"
        for words, names in (
            ("asked", [name for name in quiet if name not in absent]),
            ("refused", refused),
            ("not on this machine", absent),
        )
        if names
    )
    known = [printable(answer.hint) for answer in answers if answer.hint and not answer.owner]
    slow = [answer.entry.name for answer in answers if answer.refused in LATE]
    hint = ALL
    # An engine's programs prove nothing: images contain them, too, and /dev/kvm is in each
    # privileged container.
    if host.advice(engines=False) and (advice := host.advice(engines=_anything_runs(answers))):
        hint = advice
    elif ("/" in target or ":" in target) and os.path.exists(target):
        hint = f"a root directory is dir:{shown}, an archive of an image archive:{shown}"
    elif target.startswith(("image:", "archive:", "oci:", "dir:")):
        hint = "an image does not run: `cntr attach`, `cntr exec` and `cntr run` make a container of it for their time"
    elif target[:1] != ":" and ":" in target and not _called(plain(target).partition(":")[0], REGISTRY):
        hint = f"an image is image:{shown}; `cntr ps --all` lists containers"
    elif known and len(answers) == 1:
        hint = known[0]
    elif refused and os.geteuid() != 0:
        hint = with_sudo("an engine refused")
    elif slow:
        hint = f"a slow engine is waited for when it is named: {slow[0]}:{shown}; `cntr ps` lists what runs"
        if shown.startswith(f"{slow[0]}:"):
            hint = "its daemon does not answer: its log says why (`journalctl -u docker`, for one)"
    elif known:
        hint = known[0]
    error = TargetNotFound(f"{shown}: no running container of that name ({said})", hint)
    error.late = tuple(slow)
    error.elsewhere = next((answer.elsewhere for answer in answers if answer.elsewhere and not answer.owner), "")
    return error


def _meant(word: str, deadline: float) -> str:
    """The running containers whose names are like WORD: in other letters, as a part of them (compose's services, pods,
    tasks), or misspelled.
    """
    from difflib import get_close_matches

    present = [entry for entry in plugins.entries() if entry.present()]
    answers = ask(present, None, deadline)
    found = {one.name: one for answer in answers for one in answer.containers}
    parts = {name: name.lower().replace("_", "-").replace("/", "-").replace(".", "-").split("-") for name in found}
    alike = [name for name in found if name.lower() == word.lower() or word.lower() in parts[name]]
    alike = alike or get_close_matches(word, list(found), 3, 0.75)
    return " or ".join(found[name].label() for name in sorted(alike)[:3])


def _anything_runs(answers: list[Answer]) -> bool:
    """Whether an engine that was asked for a name has any container, or refuses to say."""
    asked = list(dict.fromkeys(answer.entry for answer in answers if not answer.owner))
    return any(a.refused or a.containers for a in (*answers, *ask(asked, None, time.monotonic() + ASK_SECONDS)))
