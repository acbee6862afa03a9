"""Users' containers that do not run, for root: each user's stores are read by a process with that user's ids.

The answer is only that user's claim. It is bounded, each value is checked for its type, and it gives no more than the
user's own rights: its stand-in is made in a user namespace with that user's ids only.
"""

from __future__ import annotations

import json
import os
import time

from cntr.engines import asking, commands, registry, store, users
from cntr.engines.container import Refused
from cntr.errors import CntrError, printable
from cntr.images import ImageError, buildah_stopped, docker_stopped, lxc_stopped, podman_stopped
from cntr.images.blueprint import Blueprint, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MODULES = {"docker": docker_stopped, "podman": podman_stopped, "buildah": buildah_stopped, "lxc": lxc_stopped}
MOST = 4  # containers of one name for which podman is asked
SECONDS, NAMED_SECONDS = 0.8, 5.0  # as for running ones (lookup): the longest that a user can delay root


def find(engines: tuple[str, ...], name: str, *, running: bool = False) -> list[Blueprint]:
    """The container NAME in users' stores. Raises ImageError if all that is found is a reason why it cannot be used."""
    asked = tuple(engine for engine in engines if engine in MODULES)
    deadline = time.monotonic() + (NAMED_SECONDS if len(engines) == 1 else SECONDS)
    found: list[Blueprint] = []
    refused = ""
    for uid, answers in _asked(users.who(monitors=False) if asked else [], asked, name, {}, deadline, running=running):
        ids = _strings(answers.get("podman", {}).get("ask"))[:MOST]
        texts = {id: _inspected(uid, id, deadline + SECONDS) for id in ids}
        if any(texts.values()):
            again = _asked([uid], ("podman",), name, texts, time.monotonic() + SECONDS, running=running)
            answers.update(dict(again).get(uid, {}))
        for engine, answer in answers.items():
            found += _blueprints(engine, uid, answer)
            refused = refused or _text(answer.get("refused"))
    if refused and not found:
        raise ImageError(printable(refused), "as that user, try `cntr`")
    return found


def stopped() -> list[Blueprint]:
    """All, with name, id, image and state only."""
    answers = _asked(users.who(monitors=False), tuple(MODULES), None, {}, time.monotonic() + SECONDS)
    return [
        made for uid, rows in answers for engine, answer in rows.items() for made in _blueprints(engine, uid, answer)
    ]


def _asked(
    uids: list[int],
    engines: tuple[str, ...],
    name: str | None,
    texts: dict[str, str],
    deadline: float,
    *,
    running: bool = False,
) -> list[tuple[int, dict[str, dict[str, Any]]]]:
    """(uid, engine → its answer) of each user whose process answered before the deadline."""
    found = []
    asked = users.start(uids, lambda: _answers(engines, name, texts, deadline - asking.ON_THE_WAY, running))
    for one, text in users.listen(asked, deadline):
        try:
            value = store.parse(text.decode("utf-8", "surrogateescape"))
        except ValueError:
            continue  # no answer, or a late one
        if isinstance(value, dict) and not one.late:
            found.append(
                (one.uid, {key: row for key, row in value.items() if key in engines and isinstance(row, dict)})
            )
    return found


# --- in the user's process -------------------------------------------------------------------------------------------


def _answers(
    engines: tuple[str, ...], name: str | None, texts: dict[str, str], deadline: float, running: bool
) -> bytes:
    answers: dict[str, dict[str, Any]] = {}
    for engine in engines:
        try:
            if name is None:
                answers[engine] = {"rows": [_said(made) for made in MODULES[engine].stopped(deadline)]}
            else:
                answers[engine] = _found(engine, name, texts, deadline, running)
        except (Refused, OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # it is missing, or its files are invalid
    return json.dumps(answers).encode()


def _found(engine: str, name: str, texts: dict[str, str], deadline: float, running: bool) -> dict[str, Any]:
    missing: list[str] = []

    def inspect(id: str) -> dict[str, Any]:
        if not texts.get(id):
            missing.append(id)
            return {}
        return podman_stopped.parsed(texts[id])

    more: dict[str, Any] = {"inspect": inspect} if engine == "podman" else {}
    try:
        rows = MODULES[engine].find(name, deadline, running=running, **more)
    except CntrError as error:
        return {"ask": missing, "refused": error.message}
    return {"rows": [_said(made) for made in rows]}


def _said(made: Blueprint) -> dict[str, Any]:
    values = {name: getattr(made, name) for name in CHECKS}
    values["mounts"] = [[one.kind, one.source, one.destination, one.read_only, one.options] for one in made.mounts]
    values["share"] = sorted(made.share)
    try:
        values["log"] = made.log() if made.log else []
    except (CntrError, OSError):
        values["log"] = []
    return values


# --- in root's process -----------------------------------------------------------------------------------------------


def _blueprints(engine: str, uid: int, answer: dict[str, Any]) -> list[Blueprint]:
    rows = answer.get("rows")
    return [_blueprint(engine, uid, row) for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)]


def _blueprint(engine: str, uid: int, row: dict[str, Any]) -> Blueprint:
    made = Blueprint(engine, "")
    for name, check in CHECKS.items():
        setattr(made, name, check(row.get(name)))
    made.state = printable(made.state[:20])
    made.mounts = _mounts(row.get("mounts"))
    made.share = set(_strings(row.get("share"))) & {"net", "ipc", "uts"}
    log = [printable(line[:400]) for line in _strings(row.get("log"))[:10]]
    made.log = lambda: log
    made.owner, made.overlay = uid, {"userxattr": ""}
    made.oom_score_adj = max(0, made.oom_score_adj)
    entry = [entry for entry in registry.REGISTRY if entry.name == engine]
    made.check = lambda: any(
        one.id == made.id and one.owner == uid
        for answer in asking.ask(entry, made.id, time.monotonic() + 2)
        for one in answer.containers
    )
    return made


def _text(value: object) -> str:
    return value[:4096] if isinstance(value, str) and "\0" not in value else ""


def _strings(value: object) -> list[str]:
    rows = value if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, str) and "\0" not in row]


def _environment(value: object) -> dict[str, str]:
    rows = value.items() if isinstance(value, dict) else ()
    return {
        key: item for key, item in rows if key and "=" not in key and isinstance(item, str) and "\0" not in key + item
    }


def _number(value: object) -> int:
    return value if isinstance(value, int) and -(1 << 63) <= value < 1 << 64 else 0


def _status(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _flag(value: object) -> bool:
    return value is True


def _profile(value: object) -> object:
    return value if value is None or isinstance(value, (str, dict)) else "unconfined"


def _rows(value: object) -> list[tuple[int, int, int]]:
    rows = value if isinstance(value, list) else []
    good = [row for row in rows if isinstance(row, list) and len(row) == 3 and all(isinstance(one, int) for one in row)]
    return [(a, b, count) for a, b, count in good if min(a, b, count) >= 0 and max(a, b, count) < 1 << 32][:340]


def _limits(value: object) -> dict[str, tuple[int, int]]:
    rows = value.items() if isinstance(value, dict) else ()
    good = {key: row for key, row in rows if isinstance(row, list) and len(row) == 2}
    return {key: (_number(row[0]), _number(row[1])) for key, row in good.items() if key.startswith("RLIMIT_")}


def _mounts(value: object) -> list[Mount]:
    found = []
    for row in value if isinstance(value, list) else []:
        if isinstance(row, list) and len(row) == 5:
            kind, source, destination = map(_text, row[:3])
            if (
                kind in ("bind", "tmpfs")
                and destination.startswith("/")
                and (kind == "tmpfs" or source.startswith("/"))
            ):
                found.append(Mount(kind, source, destination, read_only=row[3] is True, options=_strings(row[4])))
    return found[:1000]


CHECKS: dict[str, Callable[[object], object]] = {
    **dict.fromkeys("name id image state upper work directory user hostname".split(), _text),
    **dict.fromkeys("lower entrypoint argv groups masked read_only_paths health left_out".split(), _strings),
    **dict.fromkeys("no_new_privs own_group read_only privileged served".split(), _flag),
    **dict.fromkeys("ambient capabilities memory oom_score_adj pids shm umask".split(), _number),
    **dict.fromkeys("uid_map gid_map".split(), _rows),
    **{"environment": _environment, "sysctls": _environment, "limits": _limits, "seccomp": _profile, "status": _status},
    "oom_killed": lambda value: value if isinstance(value, bool) else None,
}


def _inspected(uid: int, id: str, deadline: float) -> str:
    """What the user's podman says about a container of that user, run with the user's rights; "" if nothing."""
    home, gid = store.home_and_group(uid)
    environment = {key: value for key, value in os.environ.items() if key == "CONTAINERS_STORAGE_CONF"}
    environment["HOME"] = home or "/"
    if os.path.isdir(f"/run/user/{uid}"):
        environment["XDG_RUNTIME_DIR"] = f"/run/user/{uid}"
    user = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--inh-caps=-all", "env", "--chdir=/")
    asked = ("podman", "container", "inspect", id if store.is_whole_id(id) else "")
    return commands.output(deadline, *user, *asked, variables=environment)
