"""Reports from several machines in one table."""

from __future__ import annotations

import json

from cntr.audit import session
from cntr.cli.table import Report
from cntr.errors import EXIT_FAILED, printable
from cntr.remote import ssh


def ps(hosts: list[str], *, stopped: bool) -> Report:
    """The running containers of several machines. A machine that cannot be asked is named. Raises UsageError."""
    session.check_whole("--host")
    report = Report("host", "engine", "name", "id", "pid", "state", "owner", "userns", "image")
    for host, (status, out, err) in ssh.on_all(hosts, ["ps", "--json", *(["--all"] if stopped else [])]).items():
        try:
            rows = [[_plain(row.get(name, host)) for name in report.columns] for row in json.loads(out)]
        except (ValueError, AttributeError, TypeError, RecursionError):
            report.status = EXIT_FAILED
            said = (err.strip().splitlines() or [f"status {status}" if status else "its answer is not cntr's"])[0]
            report.footer.append(f"{printable(host)}: {printable(said.removeprefix('cntr: ')[:300])}")
        else:
            for row in rows:
                report.add(*row)
    return report


def _plain(value: object) -> object:
    """Return VALUE as a report may have it: another machine can answer anything."""
    return value if value is None or isinstance(value, (str, int)) else str(value)[:300]


def docker(here: Report, *, stopped: bool) -> Report:
    """HERE, with the containers of the machine that Docker is configured for. Raises UsageError."""
    there = ps([here.elsewhere], stopped=stopped)
    at = there.columns.index("engine")
    rows = [row for row in there.rows if row[at] == "docker"]
    there.rows = [*((None, *row) for row in here.rows), *rows]
    there.footer += [line for line in here.footer if here.rows or not rows]
    return there
