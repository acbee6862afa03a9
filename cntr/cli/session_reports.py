"""``cntr sessions`` and ``cntr replay``."""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone

from cntr.attach.signals import END
from cntr.audit import live, replay
from cntr.cli.parser import Parsed
from cntr.cli.table import Report
from cntr.errors import UsageError, printable


def sessions(action: str = "list", id: str = "", *, of: int | None = None) -> Report:
    """List open sessions, or end one and list it. of: only that user's. Raises CntrError, UsageError."""
    if action not in ("list", "end") or (action == "list") != (not id):
        raise UsageError(f"sessions {printable(action)}: neither `list` nor `end ID`", "`cntr sessions` lists them")
    report = Report("id", "command", "container", "user", "tty", "pid", "for", "reason")
    for one in live.sessions(of) if action == "list" else [live.end(id, END, of)]:
        report.add(
            *(
                one.text("event.id"),
                one.text("event.action"),
                one.container(),
                one.user(),
                one.text("cntr.tty"),
                one.pid,
            ),
            *(_since(one.text("event.start")), one.text("event.reason")),
        )
    if action == "end":
        report.footer.append("ended")
    elif not report.rows:
        report.footer.append("no session is open")
    return report


def _since(start: str) -> str:
    try:
        begun = datetime.strptime(start, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return ""
    seconds = max(0, int(time.time() - begun))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"


def shown_again(parsed: Parsed) -> int:
    """Run ``cntr replay``; return the exit status. Raises CntrError, UsageError."""
    return replay.run(parsed.words[0], _number(parsed, "speed", 1.0), _number(parsed, "idle_limit", 3.0))


def _number(parsed: Parsed, key: str, usual: float) -> float:
    try:
        found = float(parsed.text(key, str(usual)))
    except ValueError:
        found = math.nan
    if not 1e-6 <= found <= 1e6:
        raise UsageError(
            f"--{key.replace('_', '-')} {printable(parsed.text(key))}: not a number above 0, and not beyond a million",
            "for example 2",
        )
    return found
