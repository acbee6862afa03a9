"""``cntr cache``: the unpacked images."""

from __future__ import annotations

import time

from cntr.cli.table import Report
from cntr.errors import CntrError, printable
from cntr.images import cache as images_cache


def cache(action: str = "list", wanted: str = "") -> Report:
    """List the images in the cache; with ``clear``, remove them and list what was removed. Raises CntrError."""
    if action not in ("list", "clear"):
        raise CntrError(f"cache {printable(action)}: no such action", "list, or clear")
    report = Report("image", "id", "files", "bytes", "used", "state")
    if action == "list":
        rows = [(row, "in use" if row.in_use else "") for row in images_cache.rows()]
        rows = [(row, state) for row, state in rows if wanted in ("", row.reference) or row.id.startswith(wanted)]
    else:
        removed, used = images_cache.clear(wanted)
        rows = [(row, "removed") for row in removed] + [(row, "in use: it stays") for row in used]
    for row, state in rows:
        used_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row.used))
        report.add(row.reference, row.id[:12], row.files, row.bytes, used_at, state)
    return report
